"""A profiler trace of chosen steps, for TensorBoard or Perfetto: RUN/profile."""

from pathlib import Path
from typing import Any

import jax


class StepProfile:
    """Traces the steps first..last of a run; each process traces its own devices.

    Args:
        workdir: RUN.
        steps: first and last, inclusive; None traces nothing.
    """

    def __init__(self, workdir: Path, steps: tuple[int, int] | None) -> None:
        self._directory = workdir / "profile"
        self._steps = steps
        self._running = False

    def __enter__(self) -> "StepProfile":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """To be called before a step is dispatched."""
        if self._steps is not None and not self._running and self._is_in(step):
            jax.profiler.start_trace(self._directory)
            self._running = True

    def after(self, step: int, results: Any) -> None:
        """To be called behind it, with what it gave back: the last one is waited for."""
        if self._running and not self._is_in(step + 1):
            jax.block_until_ready(results)
            self._stop()

    def _is_in(self, step: int) -> bool:
        return self._steps is not None and self._steps[0] <= step <= self._steps[1]

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
