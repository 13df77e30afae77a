"""Where arrays lie: the mesh, a table of rules for parameters, and batches over its batch axes.

The table is the only place that says how a parameter is split. `fsdp` splits one dimension of every
large array and XLA gathers it where it is used; `tensor` splits heads and hidden channels the way
of Megatron (arXiv 1909.08053): columns of what leads into the split part, rows of what leads out.
Optimizer state lies as its parameter does. All of it is `jax.sharding`, which took pjit's place.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rwkv_jax.mesh import AXES, BATCH_AXES, FSDP_AXIS, TENSOR_AXIS
from rwkv_jax.models.params import flat_params
from rwkv_jax.training.config import MeshConfig
from rwkv_jax.training.state import Params, TrainState

# From a parameter's path to its PartitionSpec; the first pattern that matches all of it counts.
# Blocks are stacked, so their first axis is the layer, which `jax.lax.scan` walks: never split.
RULES: tuple[tuple[str, P], ...] = (
    # [depth, D, D] into the heads, and [depth, D, D] out of them
    (r".*/spatial_mix/(receptance|key|value|gate)", P(None, FSDP_AXIS, TENSOR_AXIS)),
    (r".*/spatial_mix/output", P(None, TENSOR_AXIS, FSDP_AXIS)),
    # [depth, D] and [depth, H, N] of the heads
    (r".*/spatial_mix/(decay|bonus|head_norm/(scale|bias))", P(None, TENSOR_AXIS)),
    (r".*/spatial_mix/decay_w1", P(None, FSDP_AXIS)),  # [depth, D, 64]
    (r".*/spatial_mix/decay_w2", P(None, None, TENSOR_AXIS)),  # [depth, 64, D]
    (r".*/spatial_mix/maa_w1", P(None, FSDP_AXIS)),  # [depth, D, 5, 32]
    (r".*/spatial_mix/maa_w2", P(None, None, None, FSDP_AXIS)),  # [depth, 5, 32, D]
    # [depth, D, hidden] into the hidden channels, and [depth, hidden, D] out of them
    (r".*/channel_mix/key", P(None, FSDP_AXIS, TENSOR_AXIS)),
    (r".*/channel_mix/value", P(None, TENSOR_AXIS, FSDP_AXIS)),
    # Its product meets the value's, which is whole again.
    (r".*/channel_mix/receptance", P(None, FSDP_AXIS)),
    (r".*/channel_mix/key_norm/(scale|bias)", P(None, TENSOR_AXIS)),  # [depth, hidden]
    (r"text/embedding", P(None, FSDP_AXIS)),  # [V, D]: a row is looked up where its columns lie
    (r"image/patch_embed/kernel", P(None, None, None, FSDP_AXIS)),  # [P, P, 3, D]
    # Small: on every device.
    (r".*/norm(1|2|_in|_out)/(scale|bias)", P()),
    (r".*/spatial_mix/(maa|maa_x|key_norm/(scale|bias))", P()),
    (r".*/channel_mix/mix_(k|r)", P()),
    (r".*/blocks/scale(1|2)", P()),
    (r"image/(positions|cls_token|patch_embed/bias)", P()),
    (r"logit_(scale|bias)", P()),
)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes data, fsdp and tensor over `devices` (None: all of all processes).

    On a TPU the axes are laid along the chips' links as `mesh_utils` sees fit.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [getattr(config, axis) for axis in AXES]
    known = math.prod(size for size in sizes if size != -1)
    asked = ", ".join(f"{axis} = {size}" for axis, size in zip(AXES, sizes, strict=True))
    if len(devices) % known or (-1 not in sizes and known != len(devices)):
        raise ValueError(
            f"mesh {asked} does not fit {len(devices)} device(s): the sizes must multiply to that"
            " number; one of them may be -1, which takes what is left"
        )
    shape = tuple(len(devices) // known if size == -1 else size for size in sizes)
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(np.asarray(grid), AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device, whole."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis of a batch, split over the data and fsdp axes together."""
    return NamedSharding(mesh, P(BATCH_AXES))


def check_batch_divides(batch_size: int, mesh: Mesh) -> None:
    """Raises ValueError where the global batch does not divide over the mesh."""
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size % parts:
        raise ValueError(
            f"batch_size = {batch_size} does not divide over {parts} parts (mesh.data *"
            f" mesh.fsdp): choose a multiple of {parts}, or another mesh"
        )


def param_spec(path: str, shape: Sequence[int], mesh: Mesh) -> P:
    """How the parameter at `path` ("image/blocks/norm1/scale") is split, by RULES.

    Raises:
        ValueError: no rule names it, or a dimension does not divide over its axis.
    """
    spec = next((spec for pattern, spec in RULES if re.fullmatch(pattern, path)), None)
    if spec is None:
        raise ValueError(
            f"no rule of rwkv_jax/training/sharding.py names the parameter {path}"
            f" {tuple(shape)}: add one, or P() for a copy on every device"
        )
    for dimension, axis in enumerate(spec):
        if axis is not None and shape[dimension] % mesh.shape[axis]:
            raise ValueError(
                f"parameter {path} {tuple(shape)}: dimension {dimension} of {shape[dimension]} does"
                f" not divide over mesh.{axis} = {mesh.shape[axis]}: choose a divisor of it"
            )
    return spec


def param_shardings(params: Params, mesh: Mesh) -> Params:
    """A NamedSharding for every leaf (arrays or ShapeDtypeStructs) of `params`.

    Raises:
        ValueError: see `param_spec`.
    """
    leaves = [
        NamedSharding(mesh, param_spec(path, leaf.shape, mesh))
        for path, leaf in flat_params(params).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def like_params(tree: Any, params: Params, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf of `tree` (optimizer state, averages of parameters).

    A leaf whose path ends with a parameter's and that has its shape lies as that parameter; all
    else (counts, rates, factored moments) is small and on every device.

    Args:
        tree: of arrays or ShapeDtypeStructs.
        params: the parameters it goes with.
    """
    known = flat_params(params)

    def sharding_of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        for first in range(len(names)):
            name = "/".join(names[first:])
            if name in known and known[name].shape == leaf.shape:
                return NamedSharding(mesh, param_spec(name, leaf.shape, mesh))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding_of, tree)


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """A NamedSharding for every leaf of a state (of arrays or ShapeDtypeStructs).

    Raises:
        ValueError: see `param_spec`.
    """
    return dataclasses.replace(
        like_params(state, state.params, mesh), params=param_shardings(state.params, mesh)
    )


def on_this_process(params: Params, mesh: Mesh) -> Params:
    """Whole copies of `params` on this process's first device, gathered from all that hold parts.

    All processes must call it together.
    """
    whole = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(params)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)
