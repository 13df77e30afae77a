"""Features with what is right for them, and how parts of them are drawn."""

import dataclasses

import numpy as np
from jaxtyping import Float, Float32, Int

from rwkv_jax.evaluation.features import EmbeddedSplit


@dataclasses.dataclass(frozen=True)
class Examples:
    """Rows to fit on or to be judged on.

    Attributes:
      features: as the encoder gives them.
      targets: [n] classes, or [n, C] of 1, 0 and NaN (unknown) where there may be several.
    """

    features: Float32[np.ndarray, "n D"]
    targets: Int[np.ndarray, " n"] | Float[np.ndarray, "n C"]

    def __len__(self) -> int:
        return len(self.features)

    @property
    def multi_label(self) -> bool:
        """Whether a row may have several classes."""
        return self.targets.ndim == 2

    def take(self, rows: Int[np.ndarray, " m"]) -> "Examples":
        """Some of the rows."""
        return Examples(self.features[rows], self.targets[rows])

    def join(self, other: "Examples") -> "Examples":
        """These rows, then the other's."""
        return Examples(
            np.concatenate([self.features, other.features]),
            np.concatenate([self.targets, other.targets]),
        )


def examples_of(split: EmbeddedSplit, label: str) -> Examples:
    """The pictures of which the label is known, for one class at least.

    Raises:
      ValueError: the dataset has no such label, or no picture has it.
    """
    targets: np.ndarray
    if split.is_multi_label(label):
        targets = split.multi_label(label)
        known = ~np.isnan(targets).all(axis=1)
    else:
        targets = split.label(label)
        known = targets >= 0
    if not known.any():
        raise ValueError(
            f"a linear probe of {label!r} needs pictures that have it: {split.name} has none"
        )
    return Examples(split.before_normalisation()[known], targets[known])


def hold_out(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """(the rest, the part held out), at least one row each, drawn without regard to classes."""
    order = np.random.default_rng(seed).permutation(len(examples))
    count = min(max(1, round(share * len(order))), len(order) - 1)
    return examples.take(order[count:]), examples.take(order[:count])


def draw_shots(
    targets: Int[np.ndarray, " n"], shots: int, generator: np.random.Generator
) -> Int[np.ndarray, " m"]:
    """Rows with `shots` of each class, or all that a class has.

    The same generator state gives the rows of fewer shots among those of more.
    """
    order = generator.permutation(len(targets))
    by_class = order[np.argsort(targets[order], kind="stable")]
    first = np.searchsorted(targets[by_class], targets[by_class], "left")
    return by_class[np.arange(len(by_class)) - first < shots]
