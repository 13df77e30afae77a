"""A TPU topology without a TPU: meshes that programs can be compiled for, ahead of time.

Needs the extra `aot`: libtpu holds the compiler, and needs no device for it.
"""

import os

import jax
import numpy as np
from jax.experimental import topologies

# libtpu must not look for the cloud that a TPU would be in, nor for another process that holds one.
NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def mesh(topology: str, *, devices: int | None = None, axis: str = "data") -> jax.sharding.Mesh:
    """A one-dimensional mesh over the devices (or the first few) of a topology such as "v5e:4x4".

    Sets the environment variables that libtpu asks for, where they are not set.

    Raises:
      ValueError: a topology that libtpu does not know, or no libtpu.
    """
    for name, value in NO_TPU_HERE.items():
        os.environ.setdefault(name, value)
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:
        raise ValueError(
            f"cannot compile for the TPU topology {topology!r} ({error}): names are like v5e:4x4, "
            "v5p:2x2x1 or v6e:4x4, and the compiler comes with the extra `aot`."
        ) from error
    chosen = description.devices[:devices]
    return jax.sharding.Mesh(np.array(chosen), (axis,))
