"""How fast a run is: rates, percentiles and shares of time, from durations alone."""

import dataclasses
import math
from collections.abc import Sequence

from rwkv_jax.chips import Chip


@dataclasses.dataclass(frozen=True)
class Work:
    """What one step does.

    Attributes:
        images: in the global batch.
        flops: model FLOPs of the whole batch, forward and backward.
        devices: that share it.
        chip: what they are, where their published peak is known.
    """

    images: int
    flops: float
    devices: int
    chip: Chip | None


@dataclasses.dataclass(frozen=True)
class Past:
    """What earlier starts of a run left behind.

    Attributes:
        started: Unix time of its first start.
        useful_seconds: spent in steps whose result was kept.
        judged: the last step that was evaluated.
    """

    started: float
    useful_seconds: float = 0.0
    judged: int | None = None


class Meter:
    """Collects a window of steps between two lines of metrics; `values` closes the window.

    The first step after a start compiles. It is no useful time, and no part of a window that holds
    other steps.
    """

    def __init__(self, work: Work, past: Past) -> None:
        self._work = work
        self._past = past
        self._useful = past.useful_seconds
        self._compiled = False
        self._clear()

    def _clear(self) -> None:
        self._steps: list[tuple[float, float]] = []  # (duration, of which waiting for data)
        self._first: tuple[float, float] | None = None
        self._saving = 0.0

    def step(self, seconds: float, waited: float) -> None:
        """A step took so long, of which it waited for its batch."""
        if not self._compiled:
            self._compiled, self._first = True, (seconds, waited)
            return
        self._steps.append((seconds, waited))
        self._useful += seconds - waited

    def saved(self, seconds: float) -> None:
        """Training stood still so long for a checkpoint (it is written behind the next steps)."""
        self._saving += seconds

    def values(self, now: float) -> dict[str, float]:
        """The window's figures, by their names in the metrics; at least one step must be in it.

        Args:
            now: Unix time.
        """
        first = [] if self._first is None else [self._first]
        steps = self._steps or first
        seconds = [duration for duration, _ in steps]
        rate = len(steps) / sum(seconds)
        work, wall = self._work, max(now - self._past.started, 1e-9)
        values = {
            "train/images_per_second": work.images * rate,
            "train/images_per_second_per_device": work.images * rate / work.devices,
            "train/model_flops_per_second": work.flops * rate,
            "train/step_seconds": 1 / rate,
            "train/data_wait_share": sum(waited for _, waited in steps) / sum(seconds),
            "run/checkpoint_seconds": self._saving,
            "run/useful_seconds": self._useful,
            "run/wall_seconds": wall,
            "run/goodput": self._useful / wall,
        }
        values |= {
            f"train/step_seconds_p{share}": percentile(seconds, share) for share in (50, 90, 99)
        }
        if work.chip is not None:
            values["train/mfu"] = work.flops * rate / (work.devices * work.chip.flops)
        if first:
            values["run/first_step_seconds"] = first[0][0]
        self._clear()
        return values


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least `share` percent of them do not exceed (nearest rank).

    Examples: of 1..10 the 90th is 9 and the 99th is 10; of one value all are that value.
    """
    rank = math.ceil(share / 100 * len(values))
    return sorted(values)[max(rank, 1) - 1]
