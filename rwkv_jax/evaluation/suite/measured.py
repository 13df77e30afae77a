"""What one task found, with everything that it depends on."""

import dataclasses
from typing import Any

from rwkv_jax.evaluation.figure import Figure


@dataclasses.dataclass(frozen=True)
class PartFacts:
    """Which pictures a part has.

    Attributes:
      part: "train", "validation" or "test".
      source: the dataset and split it was read from.
      split: which pictures were taken, in words.
      content_hash: of the source and the choice.
      keys_sha256: of the sorted keys of the pictures that were used: equal ones, equal pictures.
      count: pictures that were used.
      expected: pictures in the paper.
      skipped: pictures that could not be decoded.
    """

    part: str
    source: str
    split: str
    content_hash: str
    keys_sha256: str
    count: int
    expected: int
    skipped: int


@dataclasses.dataclass(frozen=True)
class Measured:
    """One task's result.

    Attributes:
      task: e.g. "zero_shot/cifar10".
      metric: what `value` is, e.g. "mean_per_class".
      value: what the tables show; for retrieval, R@1 from picture to text.
      chance: what guessing gives.
      figures: all that was measured, by name.
      chances: what guessing gives, by the same names.
      parts: the pictures.
      prompts: templates, and the hash of them and the class names; None where nothing was prompted.
      switches: the evaluator's configuration.
      seconds: wall time, encoding left out.
    """

    task: str
    metric: str
    value: float
    chance: float
    figures: dict[str, float]
    chances: dict[str, float]
    parts: tuple[PartFacts, ...]
    prompts: dict[str, Any] | None
    switches: dict[str, Any]
    seconds: float

    def to_figures(self) -> list[Figure]:
        """All figures, named "zero_shot/cifar10/top_1"."""
        return [
            Figure(f"{self.task}/{name}", value, self.chances[name])
            for name, value in self.figures.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Measured":
        """The inverse of `to_dict`.

        Raises:
          TypeError: a field is missing or unknown.
        """
        parts = tuple(PartFacts(**part) for part in values["parts"])
        return cls(**{**values, "parts": parts})
