"""What is measured, as data: which evaluators on which splits."""

import dataclasses
from typing import Any

from rwkv_jax.evaluation.prompts import PROMPTS
from rwkv_jax.models.params import WhichParams


def _require(condition: bool, owner: object, field: str, wanted: str) -> None:
    if not condition:
        value = getattr(owner, field)
        raise ValueError(f"{type(owner).__name__}.{field} = {value!r}: {wanted}")


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
    """Recall of pictures by text and of texts by picture within one split.

    Attributes:
      dataset: a name that `rwkv_jax.data.catalog.open_dataset` knows.
      split: one of its splits.
      ks: the cut-offs of R@k.
    """

    dataset: str
    split: str
    ks: tuple[int, ...] = (1, 5, 10)

    def __post_init__(self) -> None:
        _require(bool(self.ks) and min(self.ks) >= 1, self, "ks", "needs numbers of 1 or more")

    @property
    def name(self) -> str:
        """Begins the names of its figures."""
        return f"retrieval/{self.split}"


@dataclasses.dataclass(frozen=True)
class ZeroShotConfig:
    """Classification by the nearest class name.

    Attributes:
      dataset: a name that `open_dataset` knows.
      split: one of its splits.
      label: which of the dataset's labels holds the classes.
      prompts: a set of `rwkv_jax.evaluation.prompts.PROMPTS`.
      ks: the cut-offs of top-k accuracy.
    """

    dataset: str
    split: str
    label: str
    prompts: str = "plain"
    ks: tuple[int, ...] = (1, 5)

    def __post_init__(self) -> None:
        _require(bool(self.ks) and min(self.ks) >= 1, self, "ks", "needs numbers of 1 or more")
        _require(self.prompts in PROMPTS, self, "prompts", f"must be one of {sorted(PROMPTS)}")

    @property
    def name(self) -> str:
        """Begins the names of its figures."""
        return f"zero_shot/{self.split}/{self.label}"


@dataclasses.dataclass(frozen=True)
class LinearProbeConfig:
    """A linear classifier on frozen picture features, fitted on one split and judged on another.

    Attributes:
      dataset: a name that `open_dataset` knows.
      train_split: the split to fit on.
      test_split: the split to judge on.
      label: which of the dataset's labels holds the classes.
      penalties: weights of |W|^2 / 2 beside the mean loss; the best on held-out training pictures
        is taken.
      validation_share: share of the training pictures that is held out to choose the penalty.
      max_train: at most so many training pictures, drawn by `seed`; bounds the time.
      seed: draws the training and the validation pictures.
    """

    dataset: str
    train_split: str
    test_split: str
    label: str
    penalties: tuple[float, ...] = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
    validation_share: float = 0.2
    max_train: int = 50_000
    seed: int = 0

    def __post_init__(self) -> None:
        positive = bool(self.penalties) and min(self.penalties) > 0
        _require(positive, self, "penalties", "needs numbers above 0")
        share = 0 < self.validation_share < 1
        _require(share, self, "validation_share", "must lie strictly between 0 and 1")
        _require(self.max_train >= 2, self, "max_train", "must be 2 or more")

    @property
    def name(self) -> str:
        """Begins the names of its figures."""
        return f"linear_probe/{self.test_split}/{self.label}"


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """What one evaluation measures. Each split is embedded once, whoever uses it.

    Attributes:
      retrieval: the retrieval figures.
      zero_shot: the zero-shot classifications.
      linear_probe: the linear probes.
      batch_size: pictures, or texts, that are encoded at once; part of what makes two runs
        bit-equal.
      params: "ema" judges the moving average of the parameters (`optimizer.ema_decay`).
    """

    retrieval: tuple[RetrievalConfig, ...] = ()
    zero_shot: tuple[ZeroShotConfig, ...] = ()
    linear_probe: tuple[LinearProbeConfig, ...] = ()
    batch_size: int = 128
    params: WhichParams = "live"

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, self, "batch_size", "must be 1 or more")
        _require(self.params in ("live", "ema"), self, "params", "must be live or ema")
        names = [each.name for each in self.retrieval]
        names += [each.name for each in self.zero_shot]
        names += [each.name for each in self.linear_probe]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"EvalConfig: two evaluators would write figures named {twice[0]!r}; "
                "keep one of each split and label"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EvalConfig":
        """The inverse of `dataclasses.asdict`; lists, as JSON has them, become tuples.

        Raises:
          ValueError: a field is unknown, missing, or out of its range.
        """
        kinds = {
            "retrieval": RetrievalConfig,
            "zero_shot": ZeroShotConfig,
            "linear_probe": LinearProbeConfig,
        }
        fields = {
            name: tuple(_from_dict(kinds[name], each) for each in value) if name in kinds else value
            for name, value in values.items()
        }
        return _from_dict(cls, fields)


def _from_dict(kind: type, values: dict[str, Any]) -> Any:
    try:
        return kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
    except TypeError as error:  # names the field that is unknown or missing
        raise ValueError(f"{kind.__name__}: {error}") from error
