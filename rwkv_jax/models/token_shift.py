"""Token shifts: parameter-free looks at neighbouring tokens, a share of each head's channels each.

Written as disjoint masks over shifted copies of [B, T, D], because that never leaves the layout
which the matrix products want, and XLA fuses it with the interpolation that follows.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

TokenShift = Callable[[Float[Array, "B T D"]], Float[Array, "B T D"]]


def text_shift(x: Float[Array, "B T D"], *, heads: int) -> Float[Array, "B T D"]:
    """First half of each head's channels: the token before; second half: the one after."""
    _, T, D = x.shape
    share = _share_of_head(D, heads, shares=2)
    everywhere = np.ones(T, bool)
    return _take(x, [(-1, everywhere, share == 0), (+1, everywhere, share == 1)])


def image_shift(
    x: Float[Array, "B T D"], *, heads: int, grid: tuple[int, int], with_cls_token: bool
) -> Float[Array, "B T D"]:
    """Quarters of each head's channels: the patch to the left, right, above, below; 0 outside.

    Tokens are the rows of `grid` (height, width) one after the other. A cls token, where used, is
    the last one, keeps its own values, and is no patch's neighbour.

    Source: Vision-RWKV (arXiv 2403.02308), Q-Shift; RWKV-CLIP shifts inside each head.
    """
    _, T, D = x.shape
    height, width = grid
    column = np.arange(T) % width
    row = np.arange(T) // width
    patch = np.arange(T) < height * width
    share = _share_of_head(D, heads, shares=4)
    taps = [
        (-1, patch & (column > 0), share == 0),
        (+1, patch & (column < width - 1), share == 1),
        (-width, patch & (row > 0), share == 2),
        (+width, patch & (row < height - 1), share == 3),
    ]
    if with_cls_token:
        taps.append((0, ~patch, np.ones(D, bool)))
    return _take(x, taps)


def _share_of_head(width: int, heads: int, *, shares: int) -> np.ndarray:
    """Which of `shares` equal parts of its head a channel is in: int [D]."""
    head_size = width // heads
    return (np.arange(width) % head_size) // (head_size // shares)


def _take(
    x: Float[Array, "B T D"], taps: list[tuple[int, Bool[np.ndarray, "T"], Bool[np.ndarray, "D"]]]
) -> Float[Array, "B T D"]:
    """y[t, c] = x[t + offset, c] for the tap whose rows hold t and channels hold c, else 0."""
    T = x.shape[1]
    y = jnp.zeros_like(x)
    for offset, rows, channels in taps:
        padding = ((0, 0), (max(-offset, 0), max(offset, 0)), (0, 0))
        start = max(offset, 0)
        shifted = jnp.pad(x, padding)[:, start : start + T]  # [B, T, D]
        y = jnp.where(rows[:, None] & channels[None, :], shifted, y)
    return y
