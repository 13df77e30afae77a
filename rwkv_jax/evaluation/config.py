"""What is measured, as data: which evaluators on which splits."""

import dataclasses
from typing import Any

from rwkv_jax.evaluation.catalog.entry import MODES, Mode
from rwkv_jax.evaluation.probe.judge import JUDGES
from rwkv_jax.evaluation.prompts import PROMPTS
from rwkv_jax.evaluation.suite.tasks import tasks_of
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
      caption_prefix: stands before every text. The authors' code puts "a photo of " before the
        captions of COCO and of Flickr30k (`reference_quirks.CAPTION_PREFIX`); nothing by default.
    """

    dataset: str
    split: str
    ks: tuple[int, ...] = (1, 5, 10)
    caption_prefix: str = ""

    def __post_init__(self) -> None:
        _require(bool(self.ks) and min(self.ks) >= 1, self, "ks", "needs numbers of 1 or more")

    @property
    def name(self) -> str:
        """Begins the names of its figures."""
        return f"retrieval/{self.split}" + ("+caption_prefix" if self.caption_prefix else "")


@dataclasses.dataclass(frozen=True)
class ZeroShotConfig:
    """Classification by the nearest class name.

    Attributes:
      dataset: a name that `open_dataset` knows.
      split: one of its splits.
      label: which of the dataset's labels holds the classes.
      prompts: a set of `rwkv_jax.evaluation.prompts.PROMPTS`.
      ks: the cut-offs of top-k accuracy.
      integer_logits: cuts the digits after the point off 100 x cosine, as the authors' code does
        by keeping its logits in an integer array; equal classes go to the first of them.
      phantom_rows: counts right answers that no picture gave, as the authors' code does on
        ImageNet; see `reference_quirks.phantom_rows`.
    """

    dataset: str
    split: str
    label: str
    prompts: str = "plain"
    ks: tuple[int, ...] = (1, 5)
    integer_logits: bool = False
    phantom_rows: bool = False

    def __post_init__(self) -> None:
        _require(bool(self.ks) and min(self.ks) >= 1, self, "ks", "needs numbers of 1 or more")
        _require(self.prompts in PROMPTS, self, "prompts", f"must be one of {sorted(PROMPTS)}")

    @property
    def name(self) -> str:
        """Begins the names of its figures."""
        switches = ("integer_logits", "phantom_rows")
        on = "".join(f"+{switch}" for switch in switches if getattr(self, switch))
        return f"zero_shot/{self.split}/{self.label}{on}"


@dataclasses.dataclass(frozen=True)
class LinearProbeConfig:
    """A linear classifier on frozen picture features, fitted on one split and judged on another.

    Attributes:
      dataset: a name that `open_dataset` knows.
      train_split: the split to fit on.
      test_split: the split to judge on.
      label: which of the dataset's labels holds the classes.
      metric: chooses the penalty, see `probe.judge`: accuracy, mean_per_class, top_1_5, roc_auc,
        or map_11, which is for labels of which a picture may have several values.
      validation_split: the split to choose the penalty on; None holds out a share of the training
        pictures.
      validation_share: that share.
      max_train: at most so many training pictures, drawn by `seed`; None takes all.
      seed: draws the training and the validation pictures.
      shots: also fits on so many pictures a class: the few-shot probe.
      shot_seeds: how often each is drawn anew; the mean and the standard deviation are reported.
    """

    dataset: str
    train_split: str
    test_split: str
    label: str
    metric: str = "accuracy"
    validation_split: str | None = None
    validation_share: float = 0.2
    max_train: int | None = None
    seed: int = 0
    shots: tuple[int, ...] = ()
    shot_seeds: int = 5

    def __post_init__(self) -> None:
        _require(self.metric in JUDGES, self, "metric", f"must be one of {sorted(JUDGES)}")
        share = 0 < self.validation_share < 1
        _require(share, self, "validation_share", "must lie strictly between 0 and 1")
        enough = self.max_train is None or self.max_train >= 2
        _require(enough, self, "max_train", "must be 2 or more, or None")
        _require(min(self.shots, default=1) >= 1, self, "shots", "needs numbers of 1 or more")
        _require(self.shot_seeds >= 2, self, "shot_seeds", "must be 2 or more: they give a spread")

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
      suite: names of `rwkv_jax.evaluation.suite.tasks`, such as "zero_shot/cifar10": the papers'
        protocols on the papers' sets, which must lie in the data folder.
      suite_mode: whose protocol, where the papers differ.
      batch_size: pictures, or texts, that are encoded at once; part of what makes two runs
        bit-equal.
      params: "ema" judges the moving average of the parameters (`optimizer.ema_decay`).
      pool_padding: whether a text's feature is the mean over all positions, padding included. The
        authors' model is trained so, and so are this project's: to turn it off is to depart from
        the model, in order to see how much the padding matters.
    """

    retrieval: tuple[RetrievalConfig, ...] = ()
    zero_shot: tuple[ZeroShotConfig, ...] = ()
    linear_probe: tuple[LinearProbeConfig, ...] = ()
    suite: tuple[str, ...] = ()
    suite_mode: Mode = "clip"
    batch_size: int = 128
    params: WhichParams = "live"
    pool_padding: bool = True

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, self, "batch_size", "must be 1 or more")
        _require(self.params in ("live", "ema"), self, "params", "must be live or ema")
        _require(self.suite_mode in MODES, self, "suite_mode", f"must be one of {MODES}")
        try:
            tasks_of(self.suite)
        except ValueError as error:
            raise ValueError(f"EvalConfig.suite: {error}") from error
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
