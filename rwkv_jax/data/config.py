"""What can be set about the loader.

The command line's help shows the comment above a field, and for a field without one that of the
field before: each has its own.
"""

import bisect
import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ColourConfig:
    """How far a training picture's colours are changed; all 0 leaves them.

    Raises:
        ValueError: a value is out of range; the message names the field.
    """

    # Brightness: its factor is drawn from [1 - x, 1 + x].
    brightness: float = 0.0
    # Contrast: its factor is drawn from [1 - x, 1 + x].
    contrast: float = 0.0
    # Saturation: its factor is drawn from [1 - x, 1 + x].
    saturation: float = 0.0
    # Largest turn of the colour circle; 1 is a full circle.
    hue: float = 0.0
    # Share of pictures that lose their colours.
    grey_probability: float = 0.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation", "grey_probability"):
            value = getattr(self, name)
            _check(f"colour.{name}", value, 0 <= value <= 1, "in [0, 1]")
        _check("colour.hue", self.hue, 0 <= self.hue <= 0.5, "in [0, 0.5]")


@dataclass(frozen=True)
class MixturePart:
    """One dataset of a mixture.

    Raises:
        ValueError: the weight is not above 0.
    """

    dataset: str  # a name of the catalog
    split: str  # one of its splits
    # Its share of the pairs is weight / (sum of all weights) in every stretch of the stream, not
    # only on the average. Grain takes weights in hundredths of the smallest, rounded down.
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(
                f"MixturePart.weight = {self.weight} of {self.dataset}, but it must be above 0;"
                " leave the dataset out of the mixture instead"
            )


@dataclass(frozen=True)
class TextPoint:
    """The probabilities of the kinds of text at one step of a run."""

    step: int
    probabilities: dict[str, float]


@dataclass(frozen=True)
class LoaderConfig:
    """How records become training batches.

    Raises:
        ValueError: a value is out of range; the message names the field.
    """

    # Side of the square picture, in pixels.
    image_size: int = 224
    # Tokens a text, start and end included.
    context_length: int = 77
    # Probability of each kind of text, renormalised over the kinds that a record has. A kind that
    # is not named is never drawn; with none named, all are drawn alike.
    text_probabilities: dict[str, float] = field(default_factory=dict)
    # Probabilities that change during a run, instead of `text_probabilities`: piecewise linear
    # between these points, constant before the first and after the last.
    text_schedule: tuple[TextPoint, ...] = ()
    # Kinds whose texts are lists set off by commas, such as tags: every other time half of a list
    # or more is drawn, in any order, so that no word stands beside the same others only.
    list_kinds: tuple[str, ...] = ()
    # Random crop: least and largest share of the picture's area.
    crop_area: tuple[float, float] = (0.7, 1.0)
    # Random crop: least and largest width / height.
    crop_ratio: tuple[float, float] = (0.8, 1.25)
    # Probability that a picture is mirrored, left to right.
    flip_probability: float = 0.5
    # How far the pictures' colours are changed.
    colour: ColourConfig = field(default_factory=ColourConfig)
    # Processes that decode; 0 decodes in a thread of the training process.
    workers: int = 0
    # Batches that are made ready ahead.
    prefetch: int = 2
    # A larger share of broken pictures and missing texts than this stops the run.
    max_skipped_share: float = 0.05

    def __post_init__(self) -> None:
        _check("image_size", self.image_size, self.image_size >= 1, "at least 1")
        _check("context_length", self.context_length, self.context_length >= 3, "at least 3")
        _check("workers", self.workers, self.workers >= 0, "at least 0")
        _check("prefetch", self.prefetch, self.prefetch >= 1, "at least 1")
        for name in ("flip_probability", "max_skipped_share"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "in [0, 1]")
        low, high = self.crop_area
        _check("crop_area", self.crop_area, 0 < low <= high <= 1, "0 < low <= high <= 1")
        low, high = self.crop_ratio
        _check("crop_ratio", self.crop_ratio, 0 < low <= high < math.inf, "0 < low <= high")
        _check_shares("text_probabilities", self.text_probabilities)
        for point in self.text_schedule:
            _check_shares(f"text_schedule at step {point.step}", point.probabilities)
        steps = [point.step for point in self.text_schedule]
        _check(
            "text_schedule",
            self.text_schedule,
            steps == sorted(set(steps)) and all(step >= 0 for step in steps),
            "of rising steps, from 0 on",
        )
        _check(
            "text_schedule",
            self.text_schedule,
            all(point.probabilities for point in self.text_schedule),
            "of points that name probabilities",
        )
        _check(
            "text_probabilities",
            self.text_probabilities,
            not (self.text_probabilities and self.text_schedule),
            "empty where text_schedule gives the probabilities",
        )

    def text_probabilities_at(self, step: int) -> dict[str, float]:
        """Probability of each kind of text at a step, not normalised; {} draws all alike."""
        if not self.text_schedule:
            return self.text_probabilities
        steps = [point.step for point in self.text_schedule]
        after = bisect.bisect_right(steps, step)
        if after in (0, len(steps)):
            return _normalised(self.text_schedule[max(0, after - 1)].probabilities)
        left, right = self.text_schedule[after - 1], self.text_schedule[after]
        share = (step - left.step) / (right.step - left.step)
        before, behind = _normalised(left.probabilities), _normalised(right.probabilities)
        return {
            kind: (1 - share) * before.get(kind, 0.0) + share * behind.get(kind, 0.0)
            for kind in before | behind
        }

    def named_kinds(self) -> set[str]:
        """Every kind of text that the configuration names."""
        points = (point.probabilities for point in self.text_schedule)
        return set(self.text_probabilities).union(*points)


def _check(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"LoaderConfig.{name} = {value}, but it must be {expected}")


def _check_shares(name: str, shares: dict[str, float]) -> None:
    values = shares.values()
    _check(
        name,
        shares,
        all(0 <= p < math.inf for p in values) and (not values or sum(values) > 0),
        "at least 0 each, and not all 0",
    )


def _normalised(shares: dict[str, float]) -> dict[str, float]:
    total = sum(shares.values())
    return {kind: share / total for kind, share in shares.items()}
