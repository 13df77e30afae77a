"""Run on eight forced host devices: interpolations under meshes, as one line of JSON.

The interpreter of the kernels knows one device, so each part is computed by their formula: what is
seen here is how arrays and gradients are split and put together.
"""

import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from rwkv_jax.mesh import AXES
from rwkv_jax.wkv import ddlerp_kernel
from rwkv_kernels import ddlerp

MESHES = ((8, 1, 1), (2, 2, 2), (1, 1, 4))  # data, fsdp, tensor
USES, RANK, D = 2, 4, 16


def formula(x, xx, z, maa, up):
    parts = np.split(np.arange(USES * RANK), USES)
    return tuple(x + xx * (maa[a] + z[..., of_a] @ up[a]) for a, of_a in enumerate(parts))


def both(function, given):
    found, pullback = jax.vjp(function, *given)
    return found, pullback(tuple(jnp.cos(y) for y in found))


def main() -> None:
    shapes = ((8, 3, D), (8, 3, D), (8, 3, USES * RANK), (USES, D), (USES, RANK, D))
    keys = jax.random.split(jax.random.key(0), len(shapes))
    given = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    alone = jax.jit(lambda given: both(formula, given))(given)
    errors = {}
    for shape in MESHES:
        devices = np.asarray(jax.devices()[: np.prod(shape)]).reshape(shape)
        with jax.set_mesh(jax.sharding.Mesh(devices, AXES)):
            kernel = ddlerp_kernel((8, 3, D), jnp.float32, (USES, RANK, D))
            split = jax.jit(lambda given, kernel=kernel: both(kernel, given))(given)
        pairs = zip(jax.tree.leaves(split), jax.tree.leaves(alone), strict=True)
        errors[str(shape)] = max(float(np.abs(np.subtract(x, y)).max()) for x, y in pairs)
    print(json.dumps(errors))


if __name__ == "__main__":
    with (
        mock.patch.object(ddlerp, "unservable", return_value=()),
        mock.patch.object(ddlerp, "ddlerp", formula),
    ):
        main()
