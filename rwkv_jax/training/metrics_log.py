"""The record of a run: metrics.jsonl, TensorBoard, and a line or a bar for whoever watches."""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from tensorboardX import SummaryWriter
from tqdm import tqdm

from rwkv_jax.files import write_atomically
from rwkv_jax.training.meter import Past


class Log(Protocol):
    """Where a run's figures go.

    Attributes:
        past: what it holds of earlier starts.
    """

    past: Past

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Keeps the values of a step."""

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Shows progress to whoever watches."""

    def say(self, text: str) -> None:
        """Says a line."""

    def close(self) -> None:
        """Nothing comes after this."""


def open_log(workdir: Path | None, first_step: int, total_steps: int) -> Log:
    """The log of RUN; with None, of a process that is not the one to write it."""
    if workdir is None:
        return SilentLog()
    return MetricsLog(workdir, first_step=first_step, total_steps=total_steps)


class SilentLog:
    """Keeps and shows nothing."""

    def __init__(self) -> None:
        self.past = Past(time.time())

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def show(self, step: int, values: Mapping[str, float]) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """Appends scalars under RUN; a restarted run drops what came after the step it restarts from.

    Args:
        workdir: RUN; metrics.jsonl and tensorboard/ are written in it.
        first_step: the step the run (re)starts from.
        total_steps: the step it ends at.
    """

    def __init__(self, workdir: Path, *, first_step: int, total_steps: int) -> None:
        self._path = workdir / "metrics.jsonl"
        self.past = self._drop_after(first_step)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)
        self._total = total_steps
        self._started = time.monotonic()
        self._first = first_step
        self._bar = (
            tqdm(total=total_steps, initial=first_step, unit="step", dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    def _drop_after(self, step: int) -> Past:
        """Rewrites metrics.jsonl without later steps' lines and without a half-written one."""
        past = Past(time.time())
        if not self._path.exists():
            return past
        kept = []
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if not (isinstance(row, dict) and isinstance(row.get("step"), int)):
                continue
            of_training = "run/wall_seconds" in row
            if of_training:  # also of lines that are dropped: their time was spent
                past = replace(past, started=row["time"] - row["run/wall_seconds"])
            if row["step"] <= step:
                kept.append(line + "\n")
                if of_training:
                    past = replace(past, useful_seconds=row["run/useful_seconds"])
                else:
                    past = replace(past, judged=row["step"])
        write_atomically(self._path, "".join(kept))
        return past

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl and one point a curve in TensorBoard."""
        row = {"step": step, "time": round(time.time(), 3), **values}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Progress: a bar on a terminal, a plain line otherwise."""
        loss = values["train/loss"]
        rate = values["train/images_per_second"]
        mfu = f"  MFU {values['train/mfu']:.1%}" if "train/mfu" in values else ""
        waiting = values["train/data_wait_share"]
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(
                f"loss {loss:.3f}, {rate:.0f} images/s{mfu}, data wait {waiting:.0%}"
            )
            return
        elapsed = time.monotonic() - self._started
        left = elapsed / max(step - self._first, 1) * (self._total - step)
        print(
            f"step {step}/{self._total}  loss {loss:.3f}  {rate:.0f} images/s{mfu}"
            f"  data wait {waiting:.0%}  left {left / 60:.1f} min",
            flush=True,
        )

    def say(self, text: str) -> None:
        """A line that does not tear the bar."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._board.close()
        self._file.close()
