"""Asking a run to save and end: SIGTERM from a scheduler, Ctrl-C from a person."""

import os
import signal
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """A context in which SIGTERM and SIGINT are noted, and the loop asks between two steps.

    A second signal ends the process at once, as it would without this context. With several
    processes, a signal to any of them (a TPU's maintenance notice is a SIGTERM) stops all of them
    at the same step: JAX's preemption service, which has SIGTERM then, agrees on it.
    """

    def __init__(self) -> None:
        self._signal: str | None = None
        self._previous: dict[int, object] = {}
        self._alone = jax.process_count() == 1

    def __enter__(self) -> "StopRequest":
        numbers = (signal.SIGTERM, signal.SIGINT) if self._alone else (signal.SIGINT,)
        for number in numbers:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def asked(self, step: int) -> str | None:
        """The signal, if this is the step to stop after; every process asks after every step."""
        if self._alone:
            return self._signal
        return "SIGTERM" if multihost_utils.reached_preemption_sync_point(step) else None

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._signal = signal.Signals(number).name
        self._restore()
        if not self._alone:
            os.kill(os.getpid(), signal.SIGTERM)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._restore()
