"""Runs units in a process of their own, which may crash or hang on a hostile file.

What took it down is left out ("crashed the decoder") and the unit is done again without. A process
that was killed from outside (SIGKILL, SIGTERM) says nothing about the sample, and is an error.
"""

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rwkv_jax.data.convert.options import Options, Unit
from rwkv_jax.data.convert.unit import CHECKING, READING

# Seconds without a sign of life. A 100-megapixel picture takes two.
TIME_LIMIT = 120.0
_CRASHES = {
    *(signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE),
    signal.SIGSYS,
}
_START = "import sys; sys.path[:] = {path!r}; from {module} import main; main()"


class ConversionError(RuntimeError):
    """A unit could not be written; the message says which, and why."""


class Worker:
    """One process, started when it is needed and again after a crash. Close it.

    Args:
        time_limit: seconds that one sample may take.
        module: what to run; tests run one that crashes.
        folder: what relative paths are relative to; None is this process's.
    """

    def __init__(
        self,
        time_limit: float = TIME_LIMIT,
        module: str = "rwkv_jax.data.convert.worker",
        folder: str | None = None,
    ):
        self._time_limit = time_limit
        self._folder = folder
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close
        self._buffer = b""
        self._closed = threading.Event()

    def convert(
        self, unit: Unit, options: Options, work: Path, seen: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """The unit's report.

        Args:
            seen: called once a sample.

        Raises:
            ConversionError: it cannot be written.
        """
        poison: set[int] = set()
        stop: int | None = None
        # Decoders warn of what they meet; the last unit's words are enough.
        self._errors.seek(0)
        self._errors.truncate()
        while True:
            task = {
                "unit": dataclasses.asdict(unit),
                "options": options.to_json(),
                "work": str(work),
                "poison": sorted(poison),
                "stop": stop,
            }
            phase, rest = self._run(json.dumps(task).encode() + b"\n", seen)
            if phase == "done":
                return json.loads(rest)
            if phase == "failed":
                raise ConversionError(f"{unit.origin} (unit {unit.index}): {json.loads(rest)}")
            ordinal = int(rest)
            if phase == CHECKING and ordinal not in poison:
                poison.add(ordinal)
            elif stop is None or ordinal < stop:
                stop = ordinal
            else:
                raise ConversionError(
                    f"{unit.origin} (unit {unit.index}): its process crashes though nothing is read"
                    f" any more from sample {stop} on"
                )

    def close(self) -> None:
        """Ends the process. Safe to call twice, and from another thread."""
        self._closed.set()
        self._end()
        self._errors.close()

    def _run(self, task: bytes, seen: Callable[[], None]) -> tuple[str, str]:
        """The worker's last word: done, failed, or what it was at when it crashed."""
        process = self._started()
        assert process.stdin is not None
        phase, rest = READING, "0"
        try:
            process.stdin.write(task)
            process.stdin.flush()
            while (line := self._line(process, self._time_limit)) is not None:
                phase, _, rest = line.partition(" ")
                if phase in ("done", "failed"):
                    return phase, rest
                if phase == CHECKING:
                    seen()
        except BrokenPipeError:
            pass
        except TimeoutError:
            self._end()
            return phase, rest
        code = process.wait()
        self._end()
        if -code not in _CRASHES or self._closed.is_set():
            last = "" if self._errors.closed else self._last_words()
            raise ConversionError(
                f"a worker process ended with status {code} at sample {rest}{last};"
                " start the same command again to go on"
            )
        return phase, rest

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._process.poll() is not None:
            self._buffer = b""
            code = _START.format(path=sys.path, module=self._module)
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                cwd=self._folder,
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
            self._line(self._process, TIME_LIMIT)  # "ready": importing is no sample's time
        return self._process

    def _line(self, process: "subprocess.Popen[bytes]", time_limit: float) -> str | None:
        """The next line; None where the process has ended. Raises TimeoutError."""
        assert process.stdout is not None
        pipe = process.stdout.fileno()
        while b"\n" not in self._buffer:
            if not select.select([pipe], [], [], time_limit)[0]:
                raise TimeoutError
            data = os.read(pipe, 2**16)
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def _last_words(self) -> str:
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 2000))
        words = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return f" ({words[-1][:300]})" if words else ""
