"""Rows to fit on, laid out on the devices: features transposed, centred, with a row of ones."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int

ROWS_AXIS = "rows"


class Rows(NamedTuple):
    """What a fit runs on.

    Attributes:
      x: [D + 1, n] features without their mean, and ones, whose weights are the biases. The mean
        changes no solution, because biases are not penalised, but float32's error.
      targets: [n] int32 classes, or [C, n] float32 (see losses.py).
      shares: [n] each row's share of the loss; they sum to 1. 0 for padding.
    """

    x: Float32[Array, "E n"]
    targets: Array
    shares: Float32[Array, " n"]


def rows_mesh() -> Mesh:
    """All devices of this process, along one axis."""
    return Mesh(np.array(jax.local_devices()), (ROWS_AXIS,))


def lay_out(
    features: Float[np.ndarray, "n D"],
    targets: Int[np.ndarray, " n"] | Float[np.ndarray, "n C"],
    mesh: Mesh,
) -> tuple[Rows, Float32[np.ndarray, " D"]]:
    """The rows, split over all devices of `mesh`, and the mean that was taken off.

    Args:
      features: at least one row.
      targets: classes, or 1, 0 and NaN for each class.
      mesh: its devices take equal parts of the rows; what is missing is padding without a share.
    """
    n = len(features)
    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    missing = -n % mesh.size
    x = np.zeros((features.shape[1] + 1, n + missing), np.float32)
    np.subtract(features.T, mean[:, None], out=x[:-1, :n])
    x[-1, :n] = 1
    transposed = np.asarray(targets, np.int32 if targets.ndim == 1 else np.float32).T
    width = [(0, 0)] * (transposed.ndim - 1) + [(0, missing)]
    shares = np.pad(np.full(n, 1 / n, np.float32), (0, missing))

    def put(array: np.ndarray) -> Array:
        spec = PartitionSpec(*[None] * (array.ndim - 1), tuple(mesh.axis_names))
        return jax.device_put(array, NamedSharding(mesh, spec))

    return Rows(put(x), put(np.pad(transposed, width)), put(shares)), mean


@jax.jit
def second_moments(rows: Rows) -> Float32[Array, "E E"]:
    """sum_i a_i x_i x_i^T, the ones included."""
    return jnp.matmul(rows.x * rows.shares, rows.x.T, precision=jax.lax.Precision.HIGHEST)
