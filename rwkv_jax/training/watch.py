"""Watching a run without slowing it: metrics are fetched a step late, so no step waits."""

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rwkv_jax.data.skipped import SkippedRecords
from rwkv_jax.training.meter import Meter, Work
from rwkv_jax.training.metrics_log import Log
from rwkv_jax.training.update import Metrics


class NonFiniteLossError(RuntimeError):
    """The loss or the gradient is no number any more; the message names step, keys, checkpoint."""


class _Step(NamedTuple):
    number: int
    metrics: Metrics
    keys: list[str]
    skipped_share: float


class Watch:
    """Checks every step's loss, and logs every `log_every`-th.

    Args:
        work: what a step does, for rates.
        checkpoints: the folder of the run's checkpoints, named when the loss goes wrong.

    Attributes:
        last_saved: the step of the newest checkpoint, None before the first.
    """

    def __init__(self, log: Log, *, log_every: int, work: Work, checkpoints: Path) -> None:
        self._log = log
        self._log_every = log_every
        self._meter = Meter(work, log.past)
        self._checkpoints = checkpoints
        self._pending: _Step | None = None
        self.last_saved: int | None = None
        self._since = time.monotonic()
        self._waited = 0.0  # since then

    def step(
        self,
        number: int,
        metrics: Metrics,
        keys: list[str],
        waited: float,
        loader_state: dict[str, Any],
    ) -> None:
        """Notes a step just dispatched, and looks at the one before it.

        Args:
            keys: of this process's records in the batch.
            waited: seconds that the loop waited for the batch.
            loader_state: the loader's state behind the batch; says how many records were skipped.
        """
        self._waited += waited  # before the step that is looked at now is seen to be done
        self.flush()
        skipped = SkippedRecords.from_dict(loader_state["skipped"]).total
        self._pending = _Step(number, metrics, keys, skipped / loader_state["seen"])

    def flush(self) -> None:
        """Looks at the last step noted.

        Raises:
            NonFiniteLossError: its loss or gradient norm is not finite.
        """
        if self._pending is None:
            return
        seen, self._pending = self._pending, None
        values = {name: float(value) for name, value in seen.metrics.items()}
        for name in ("train/loss", "train/gradient_norm"):
            if not math.isfinite(values[name]):
                raise NonFiniteLossError(self._explain(name, values[name], seen))
        # A kind of text that the batch has not has no loss.
        values = {name: value for name, value in values.items() if not math.isnan(value)}
        now = time.monotonic()
        self._meter.step(now - self._since, self._waited)
        self._since, self._waited = now, 0.0
        if seen.number % self._log_every == 0:
            values |= self._meter.values(time.time())
            values |= {"train/skipped_share": seen.skipped_share, **device_memory()}
            self._log.write(seen.number, values)
            self._log.show(seen.number, values)

    @contextlib.contextmanager
    def saving(self, step: int) -> Iterator[None]:
        """Notes that `step` is saved, and how long training stands still for it."""
        began = time.monotonic()
        yield
        self._meter.saved(time.monotonic() - began)
        self.last_saved = step

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what is done between two steps (saving, evaluating) out of the step's time."""
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began

    def _explain(self, name: str, value: float, seen: _Step) -> str:
        good, again = "no checkpoint was saved yet", ""
        if self.last_saved is not None:
            checkpoint = self._checkpoints / str(self.last_saved)
            good = f"the last good checkpoint is {checkpoint}"
            again = f", with --start-from {checkpoint} if from its parameters"
        shown = ", ".join(str(key) for key in seen.keys[:8])
        more = f" and {len(seen.keys) - 8} more" if len(seen.keys) > 8 else ""
        return (
            f"{name} is {value} at step {seen.number}; the batch's keys are {shown}{more}; {good}."
            " Lower optimizer.peak_learning_rate or look at those records, then begin anew in"
            f" another --workdir{again}"
        )


def device_memory() -> dict[str, float]:
    """Of this process's fullest device, in bytes, where the backend counts (a CPU does not)."""
    counts = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    names = {"bytes_in_use": "device/memory_bytes", "peak_bytes_in_use": "device/peak_memory_bytes"}
    return {
        name: float(max(stats[key] for stats in counts))
        for key, name in names.items()
        if counts and all(key in stats for stats in counts)
    }
