"""A run's checkpoints: written in the background, renamed into place when whole, never guessed at.

RUN/checkpoints/STEP/ holds `params` and `opt_state` (Orbax arrays), `loader` (the data position)
and `meta` (step and versions). Orbax writes into a temporary name and renames at the end, so a
folder named after a step is whole, and one cut off in the middle is never picked up.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from rwkv_jax.training.config import CheckpointConfig
from rwkv_jax.training.state import TrainState


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says which, why and what to do."""


class RunCheckpoints:
    """The checkpoints of one run; `close` (or the context manager) waits for pending writes."""

    def __init__(self, workdir: Path, config: CheckpointConfig) -> None:
        self.directory = workdir.resolve() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            epath.Path(self.directory),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=config.keep,
                create=True,
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,
            ),
            item_names=("params", "opt_state", "loader", "meta"),
        )

    def __enter__(self) -> "RunCheckpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._manager.close()

    def wait(self) -> None:
        """Returns when everything saved so far is on disk under its final name."""
        self._manager.wait_until_finished()

    def latest_step(self) -> int | None:
        """The newest whole checkpoint's step, None where there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, loader_state: dict[str, Any]) -> None:
        """Starts to save in the background; the state may be donated right after the return.

        A step that is already on disk is left as it is.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        # Orbax may still read the arrays while the next step, which takes them as donated, runs.
        params, opt_state = jax.tree.map(jnp.copy, (state.params, state.opt_state))
        meta = {"step": step, "jax": jax.__version__, "orbax": ocp.__version__}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                opt_state=ocp.args.StandardSave(opt_state),
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
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(like.params),
                    opt_state=ocp.args.StandardRestore(like.opt_state),
                    loader=ocp.args.JsonRestore(),
                    meta=ocp.args.JsonRestore(),
                ),
            )
        # Orbax has no error type of its own: a truncated array arrives as a bare Exception.
        except Exception as error:
            first_line = str(error).strip().splitlines()[0][:300] if str(error).strip() else ""
            raise CheckpointError(
                f"checkpoint {path} cannot be restored ({type(error).__name__}: {first_line})."
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
        )
        return state, restored["loader"]
