"""A run's checkpoints: written in the background, renamed into place when whole, never guessed at.

RUN/checkpoints/STEP/ holds `params`, `opt_state` and, where an average of the parameters is kept,
`ema` (Orbax arrays), `loader` (data position), `meta` (step and versions) and checksums. Orbax
writes into a temporary name and renames at the end, so a folder named after a step is whole, and
one cut off in the middle is never picked up. One that the disk has damaged since is moved to
RUN/damaged/, and the one before it is used.

With several processes all of them call every method together; they share the workdir.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from rwkv_jax.checksums import find_damage, write_checksums
from rwkv_jax.distributed import has_lost_others, on_any_process
from rwkv_jax.training.config import CheckpointConfig
from rwkv_jax.training.state import TrainState


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says which, why and what to do."""


def quiet_late_callbacks() -> None:
    """Keeps messages of TensorStore's threads to themselves, from now to the end of the process.

    Where a save fails, the writes beside the one that failed fail too, which nobody asks about, or
    still call back to its event loop, which is closed by then; a traceback is printed for each. The
    failure itself is raised.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    shown = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            shown(unraisable)

    sys.unraisablehook = hook


class RunCheckpoints:
    """The checkpoints of one run; `close` (or the context manager) waits for pending writes."""

    def __init__(self, workdir: Path, config: CheckpointConfig) -> None:
        self.directory = workdir.resolve() / "checkpoints"
        self._damaged = workdir.resolve() / "damaged"
        self._writing: int | None = None
        self._manager = ocp.CheckpointManager(
            epath.Path(self.directory),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=config.keep,
                create=True,
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            ),
            item_names=("params", "opt_state", "ema", "loader", "meta"),
        )

    def _seal(self) -> None:
        """Orbax calls this when all is written and nothing is renamed yet."""
        if jax.process_index() == 0:
            for unfinished in self.directory.glob(f"{self._writing}.orbax-checkpoint-tmp*"):
                write_checksums(unfinished)

    def __enter__(self) -> "RunCheckpoints":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        # A process that fails among others must not wait for them: they may be gone. And what could
        # not be written once is not tried again.
        could_not_write = error is not None and issubclass(error, CheckpointError)
        among_others = error is not None and jax.process_count() > 1
        if not (could_not_write or among_others):
            self.close()

    def close(self) -> None:
        self._manager.close()

    def wait(self) -> None:
        """Returns when everything saved so far is on disk under its final name.

        Raises:
            CheckpointError: it could not be written, for example because the disk is full.
        """
        with self._explained():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Says in one sentence what could not be written, and what there is instead.

        The end of another process, without which nothing is saved either, passes as it is.
        """
        try:
            yield
        # Orbax has no error type of its own: a full disk arrives as what TensorStore raises.
        except Exception as error:
            if has_lost_others(error):
                raise
            self._manager.reload()
            raise CheckpointError(
                f"the checkpoint of step {self._writing} could not be written to {self.directory}"
                f" ({_first_line(error)}); the newest whole one is {self._newest()}."
                " Make room or mend the disk, then start again with the same --workdir"
            ) from error

    def latest_step(self) -> int | None:
        """The newest whole checkpoint's step, None where there is none."""
        return self._manager.latest_step()

    def _newest(self) -> str:
        steps = self._manager.all_steps()
        return str(self.directory / str(max(steps))) if steps else "none: nothing was saved yet"

    def newest_undamaged(self, say: Callable[[str], None] = print) -> int | None:
        """The newest step whose files are as they were written, None where there is none.

        Newer ones that are damaged are moved to RUN/damaged/, and `say` is given a line about each.
        """
        while (step := self._manager.latest_step()) is not None:
            damage = find_damage(self.directory / str(step)) if jax.process_index() == 0 else None
            if not on_any_process(damage is not None):
                return step
            if damage is not None:
                path = self.directory / str(step)
                aside = _set_aside(path, self._damaged)
                say(
                    f"checkpoint {path} is damaged ({damage}): it was moved to {aside}, and"
                    " training goes on from the one before it"
                )
            _all_together("damaged checkpoint moved")
            self._manager.reload()
        return None

    def save(self, state: TrainState, loader_state: dict[str, Any]) -> None:
        """Starts to save in the background; the state may be donated right after the return.

        A step that is already on disk is left as it is.

        Raises:
            CheckpointError: it, or the one before it, could not be written.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self.wait()  # an error of the one before belongs to that one
        self._writing = step
        # Orbax may still read the arrays while the next step, which takes them as donated, runs.
        params, opt_state, ema = jax.tree.map(jnp.copy, (state.params, state.opt_state, state.ema))
        meta = {"step": step, "jax": jax.__version__, "orbax": ocp.__version__}
        with self._explained():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(params),
                    opt_state=ocp.args.StandardSave(opt_state),
                    **({} if ema is None else {"ema": ocp.args.StandardSave(ema)}),
                    loader=ocp.args.JsonSave(loader_state),
                    meta=ocp.args.JsonSave(meta),
                ),
            )

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state and data position saved at `step`, laid out and sharded as `like`.

        Args:
            like: arrays or ShapeDtypeStructs with shardings.

        Raises:
            CheckpointError: it is unreadable, or belongs to another model.
        """
        path = self.directory / str(step)
        if like.ema is not None and path.is_dir() and not (path / "ema").is_dir():
            raise CheckpointError(
                f"checkpoint {path} holds no average of the parameters: it was written without"
                " optimizer.ema_decay; take that setting back, or give this run another --workdir"
            )
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(like.params),
                    opt_state=ocp.args.StandardRestore(like.opt_state),
                    **({} if like.ema is None else {"ema": ocp.args.StandardRestore(like.ema)}),
                    loader=ocp.args.JsonRestore(),
                    meta=ocp.args.JsonRestore(),
                ),
            )
        # Orbax has no error type of its own: a truncated array arrives as a bare Exception.
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {path} cannot be restored ({_first_line(error)})."
                " If it is damaged, move that folder away to go on from the one before it;"
                " if it is of another model, give this run another --workdir."
            ) from error
        if restored["meta"]["step"] != step:
            raise CheckpointError(
                f"checkpoint {path} says it is of step {restored['meta']['step']}, not {step}:"
                " its folder was renamed; give it its own name back"
            )
        state = TrainState(
            step=jax.device_put(jnp.asarray(step, jnp.int32), like.step.sharding),
            params=restored["params"],
            opt_state=restored["opt_state"],
            ema=None if like.ema is None else restored["ema"],
        )
        return state, restored["loader"]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def _set_aside(folder: Path, into: Path) -> Path:
    """Moves `folder` into `into` under a name that is free there."""
    into.mkdir(exist_ok=True)
    names = (folder.name, *(f"{folder.name}_{n}" for n in range(2, 1000)))
    aside = next(into / name for name in names if not (into / name).exists())
    os.rename(folder, aside)
    return aside


def _all_together(name: str) -> None:
    """Waits for every process."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
