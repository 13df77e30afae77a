"""The mesh's axes, for whoever lays arrays out: training, and the layers under a mesh.

`data`: batches are split, parameters are not. `fsdp`: batches are split and parameters too; each
layer's are gathered when it runs. `tensor`: heads and hidden channels are split.
"""

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

DATA_AXIS, FSDP_AXIS, TENSOR_AXIS = AXES = ("data", "fsdp", "tensor")
BATCH_AXES = (DATA_AXIS, FSDP_AXIS)  # a batch is split over both


def axis_sizes() -> dict[str, int]:
    """Devices along each axis of the mesh that is set (`jax.set_mesh`); 1 where there is none, and
    inside a `jax.shard_map` that splits the axis already.
    """
    free = free_axes()
    shape = jax.sharding.get_abstract_mesh().shape if free else {}
    return {axis: shape[axis] if axis in free else 1 for axis in AXES}


def free_axes() -> frozenset[str]:
    """Axes of the mesh that is set which no `jax.shard_map` splits here.

    Raises:
        ValueError: axes are explicit: what is split here is XLA's to find.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return frozenset()
    kinds = tuple(zip(mesh.axis_names, mesh.axis_types, strict=True))
    explicit = [name for name, kind in kinds if kind == jax.sharding.AxisType.Explicit]
    if explicit and mesh.size > 1:
        raise ValueError(
            f"the mesh's axes {explicit} are explicit, as jax.make_mesh makes them: make it by"
            " rwkv_jax.training.sharding.make_mesh, or with axis_types=(AxisType.Auto, ...)"
        )
    return frozenset(name for name, kind in kinds if kind != jax.sharding.AxisType.Manual)


def is_whole() -> bool:
    """Whether nothing is split here: no mesh is set, or of one device, or all of it is taken."""
    shape = jax.sharding.get_abstract_mesh().shape
    return all(shape[axis] == 1 for axis in free_axes())


def split_over(*axes: str | tuple[str, ...] | None) -> PartitionSpec:
    """A spec of an array's axes, without axes that the mesh has not, or that are split already."""
    free, each = free_axes(), ((axis,) if isinstance(axis, str) else axis for axis in axes)
    return PartitionSpec(*(tuple(x for x in some or () if x in free) or None for some in each))


def batch_parts() -> int:
    """Into how many parts a batch is split under the mesh that is set."""
    sizes = axis_sizes()
    return sizes[DATA_AXIS] * sizes[FSDP_AXIS]


def keep_batch_split(x: Float[Array, "B *rest"]) -> Float[Array, "B *rest"]:
    """`x`, split over the batch alone. Without it XLA may split activations as parameters are.

    It must divide: under a mesh of one device, or none, `x` comes back as it is.
    """
    if batch_parts() == 1:
        return x
    return jax.lax.with_sharding_constraint(x, split_over(BATCH_AXES))
