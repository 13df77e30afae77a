"""Token shifts: parameter-free looks at neighbouring tokens, a share of each head's channels each.

Written as disjoint masks over shifted copies of [B, T, D], because that never leaves the layout
which the matrix products want, and XLA fuses it with the interpolation that follows.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from rwkv_jax.models.layers import by_itself

TokenShift = Callable[[Float[Array, "B T D"]], Float[Array, "B T D"]]


def text_shift(x: Float[Array, "B T D"], *, heads: int) -> Float[Array, "B T D"]:
    """First half of each head's channels: the token before; second half: the one after."""
    _, T, D = x.shape
    share = _share_of_head(D, heads, shares=2)
    everywhere = np.ones(T, bool)
    return _shift(x, [_Tap(-1, everywhere, share == 0), _Tap(+1, everywhere, share == 1)])


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
        _Tap(-1, patch & (column > 0), share == 0),
        _Tap(+1, patch & (column < width - 1), share == 1),
        _Tap(-width, patch & (row > 0), share == 2),
        _Tap(+width, patch & (row < height - 1), share == 3),
    ]
    if with_cls_token:
        taps.append(_Tap(0, ~patch, np.ones(D, bool)))
    return _shift(x, taps)


def _share_of_head(width: int, heads: int, *, shares: int) -> np.ndarray:
    """Which of `shares` equal parts of its head a channel is in: int [D]."""
    head_size = width // heads
    return (np.arange(width) % head_size) // (head_size // shares)


class _Tap(NamedTuple):
    """Token t takes its channels from token t + offset, where `rows` holds t."""

    offset: int
    rows: Bool[np.ndarray, "T"]
    channels: Bool[np.ndarray, "D"]

    def reversed(self) -> "_Tap":
        """What gradients take: token t + offset takes from t."""
        rows = np.zeros_like(self.rows)
        taken_from = np.flatnonzero(self.rows) + self.offset
        rows[taken_from[(taken_from >= 0) & (taken_from < len(rows))]] = True
        return _Tap(-self.offset, rows, self.channels)


def _shift(x: Float[Array, "B T D"], taps: list[_Tap]) -> Float[Array, "B T D"]:
    """y[t, c] = x[t + offset, c] for the tap whose rows hold t and channels hold c, else 0.

    Each number goes to one token at most, so the gradient is a shift as well: one pass, where
    autodiff would write a masked array for each tap and add them up.

    What is shifted is in memory on a GPU: of a norm, say, that it is made of, XLA would compute
    every number once a tap.
    """

    @jax.custom_vjp
    def shift(x):
        return _take(by_itself(x), taps)

    def forward(x):
        return shift(x), None

    def backward(_, g):
        return (_take(by_itself(g), [tap.reversed() for tap in taps]),)

    shift.defvjp(forward, backward)
    return shift(x)


def _take(x: Float[Array, "B T D"], taps: list[_Tap]) -> Float[Array, "B T D"]:
    T = x.shape[1]
    y = jnp.zeros_like(x)
    for offset, rows, channels in taps:
        padding = ((0, 0), (max(-offset, 0), max(offset, 0)), (0, 0))
        start = max(offset, 0)
        shifted = jnp.pad(x, padding)[:, start : start + T]  # [B, T, D]
        y = jnp.where(rows[:, None] & channels[None, :], shifted, y)
    return y
