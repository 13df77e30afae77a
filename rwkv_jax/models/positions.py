"""Learned positions of another resolution: the bicubic resize that the published weights expect.

`jax.image.resize` will not do: its cubic kernel has a = -0.5 and it smooths when it shrinks;
PyTorch's (bicubic, align_corners=False) has a = -0.75, does not smooth, and repeats the border.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_A = -0.75


def resize_positions(
    positions: Float[Array, "H W D"], grid: tuple[int, int]
) -> Float[Array, "H2 W2 D"]:
    """Resizes a grid of positions; the same array when the grid is the same."""
    if positions.shape[:2] == grid:
        return positions
    rows, columns = (
        jnp.asarray(bicubic_matrix(*sizes), positions.dtype)
        for sizes in zip(positions.shape[:2], grid, strict=True)
    )
    return jnp.einsum(
        "ah,bw,hwd->abd", rows, columns, positions, precision=jax.lax.Precision.HIGHEST
    )


def bicubic_matrix(source: int, target: int) -> Float[np.ndarray, "target source"]:
    """The linear map of a bicubic resize along one axis; each row sums to 1. float64.

    Source: Keys, Cubic convolution interpolation for digital image processing (1981).
    """
    matrix = np.zeros((target, source))
    for row in range(target):
        centre = (row + 0.5) * source / target - 0.5
        first = int(np.floor(centre)) - 1
        for tap in range(first, first + 4):
            matrix[row, min(max(tap, 0), source - 1)] += _cubic(abs(centre - tap))
    return matrix


def _cubic(distance: float) -> float:
    if distance <= 1.0:
        return ((_A + 2.0) * distance - (_A + 3.0)) * distance**2 + 1.0
    if distance < 2.0:
        return _A * (((distance - 5.0) * distance + 8.0) * distance - 4.0)
    return 0.0
