"""What a run is made of before anything is allocated: mesh, shapes with their places, the step.

`train.py` runs it; a dry run compiles the same for devices that are not there.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from rwkv_jax.chips import chip_of
from rwkv_jax.config import RunConfig
from rwkv_jax.mesh import BATCH_AXES
from rwkv_jax.models import RwkvClip
from rwkv_jax.models.flops import train_flops
from rwkv_jax.models.params import model_graphdef, params_to_dict
from rwkv_jax.precision import compute_dtype
from rwkv_jax.training.losses import check_loss_fits
from rwkv_jax.training.meter import Work
from rwkv_jax.training.optimizer import learning_rate_schedule, make_optimizer
from rwkv_jax.training.sharding import (
    batch_sharding,
    check_batch_divides,
    make_mesh,
    state_shardings,
)
from rwkv_jax.training.state import TrainState, first_state
from rwkv_jax.training.update import TrainStep, make_train_step


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run's parts; see `set_up`.

    Attributes:
        mesh: over all devices of all processes.
        dtype: what matrix products are computed in.
        initialise: key -> the first state, every array created where it belongs.
        state_like: shapes, dtypes and shardings of the state.
        batch_like: of the global batch.
        step: (state, batch) -> (state, metrics).
        work: what a step does, for rates.
    """

    mesh: Mesh
    dtype: jnp.dtype
    initialise: Callable[[PRNGKeyArray], TrainState]
    state_like: TrainState
    batch_like: dict[str, jax.ShapeDtypeStruct]
    step: TrainStep
    work: Work

    @property
    def parameters(self) -> int:
        """How many numbers the model's parameters are."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.state_like.params))


def set_up(
    config: RunConfig,
    devices: Sequence[jax.Device] | None = None,
    *,
    text_kinds: Sequence[str] = (),
) -> Setup:
    """The parts of the run that `config` describes; compiles and allocates nothing.

    Args:
        devices: to lay it out over, perhaps only described (`jax.experimental.topologies`); None:
            all devices of all processes.
        text_kinds: those of the data, whose losses are logged each.

    Raises:
        ValueError: the mesh does not fit the devices, or the batch, a parameter, micro-batches or
            the chunks of the loss do not divide over it; or a pattern of the optimizer's is found
            in no parameter's path.
    """
    mesh = make_mesh(config.mesh, devices)
    check_batch_divides(config.batch_size, mesh)
    check_parts_fit(config, mesh)
    with jax.set_mesh(mesh):  # the platform is the mesh's
        dtype = compute_dtype(config.precision)
    optimizer = make_optimizer(config.optimizer, config.steps)

    def initial_state(key: PRNGKeyArray) -> TrainState:
        params = params_to_dict(nnx.state(RwkvClip(config.model, rngs=nnx.Rngs(key))))
        return first_state(params, optimizer, ema=config.optimizer.ema_decay is not None)

    shapes = jax.eval_shape(initial_state, jax.random.key(0))
    shardings = state_shardings(shapes, mesh)
    return Setup(
        mesh=mesh,
        dtype=dtype,
        initialise=jax.jit(initial_state, out_shardings=shardings),
        state_like=_placed(shapes, shardings),
        batch_like=_batch_like(config, mesh),
        step=make_train_step(
            model_graphdef(config.model, dtype),
            optimizer,
            learning_rate_schedule(config.optimizer, config.steps),
            rules=config.optimizer,
            loss=config.loss,
            positives=config.positives,
            micro_batches=config.micro_batches,
            text_kinds=text_kinds,
            seed=config.seed,
            mesh=mesh,
            state_sharding=shardings,
        ),
        work=Work(
            images=config.batch_size,
            flops=train_flops(
                config.model, config.batch_size, frozen=config.optimizer.frozen
            ).total,
            devices=mesh.size,
            chip=chip_of(mesh.devices.flat[0].device_kind),
        ),
    )


def check_parts_fit(config: RunConfig, mesh: Mesh) -> None:
    """Raises ValueError where micro-batches or chunks do not divide the pairs of a device."""
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    pairs = config.batch_size // parts
    check_loss_fits(config.loss, pairs)
    if pairs % config.micro_batches:
        raise ValueError(
            f"micro_batches = {config.micro_batches} does not divide the {pairs} pairs of each of"
            f" {parts} parts of the batch (mesh.data * mesh.fsdp): choose a divisor of {pairs}"
        )


def _placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def _batch_like(config: RunConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    B, S = config.batch_size, config.data.loader.image_size
    shapes = {
        "image": jax.ShapeDtypeStruct((B, S, S, 3), jnp.uint8),
        "text": jax.ShapeDtypeStruct((B, config.data.loader.context_length), jnp.int32),
        "concept": jax.ShapeDtypeStruct((B,), jnp.int32),
        "kind": jax.ShapeDtypeStruct((B,), jnp.int32),
    }
    return _placed(shapes, dict.fromkeys(shapes, batch_sharding(mesh)))
