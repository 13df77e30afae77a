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
    """Devices along each axis of the mesh that is set (`jax.set_mesh`); 1 each where none is."""
    mesh = jax.sharding.get_abstract_mesh()
    return {axis: 1 if mesh.empty else mesh.shape.get(axis, 1) for axis in AXES}


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
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))
