"""Which tokens of a tile meet which: masks [64, 64] of zeros and ones.

At level m (1, 2, 4, ...) a tile falls into blocks of 2m tokens, and the tokens of a block's left
half meet those of its right half; each is decayed up to the midpoint. T = 8, who meets at what
level (0 is a token with itself):

      0 1 2 3 4 5 6 7
    0 0 1 2 2 4 4 4 4
    1 1 0 2 2 4 4 4 4
    2 2 2 0 1 4 4 4 4     the level is the highest bit in which two numbers differ
    3 2 2 1 0 4 4 4 4
    4 4 4 4 4 0 1 2 2
    ...

All masks are arithmetic on one table of small numbers (`meetings`): it works on pairs of float16,
where comparisons and choices would take each number into a register of its own, and a conversion
of what they give is among a GPU's slowest instructions.

A mask is float16, of zeros and ones; `of_bfloat16` gives it to what is bfloat16. It is [64, 64], or
[64, 16] for each token's sixteen alone (`warp.py`), and all here is the same for both.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, BFloat16, Bool, Float16, Int

from rwkv_kernels.gpu.plan import TILE
from rwkv_kernels.gpu.warpgroup import BFLOAT16, FLOAT16, Warpgroup

Mask = Float16[Array, "64 s"]

# The float16 whose bits are those of 1 in bfloat16.
ONE_AS_BITS = float(np.asarray(1, BFLOAT16).view(np.float16))
_HALF_AS_BITS = float(np.asarray(0.5, BFLOAT16).view(np.float16))


def meetings(columns: int = TILE) -> Mask:
    """Bit of the level at which two tokens meet, plus 1: positive where the column's is later."""
    row, column = np.indices((TILE, columns))
    row %= columns
    bit = np.frexp((row ^ column).astype(np.float64))[1]  # 0 for 0, else 1 + the highest bit
    return jnp.asarray(np.sign(column - row) * bit, FLOAT16)


def bits(columns: int) -> Float16[Array, "2 64 s"]:
    """For `choose.where`: all bits where the column's token is earlier (0), or later (1)."""
    row, column = np.indices((TILE, columns))
    row %= columns
    marked = np.stack([column < row, column > row]).astype(np.uint16) * np.uint16(0xFFFF)
    return jnp.asarray(marked.view(np.float16))


def of_bfloat16(mask: Mask) -> BFloat16[Array, "64 s"]:
    """A mask in bfloat16, without a conversion."""
    return lax.bitcast_convert_type(mask * _number(ONE_AS_BITS), BFLOAT16)


def bits_as_bfloat16(mask: Mask) -> BFloat16[Array, "64 s"]:
    """As `of_bfloat16`, of a mask with `ONE_AS_BITS` for 1."""
    return lax.bitcast_convert_type(mask, BFLOAT16)


def halves_of_bfloat16(mask: Mask) -> BFloat16[Array, "64 s"]:
    """As `of_bfloat16`, of a mask of halves and minus halves."""
    return lax.bitcast_convert_type(mask * _number(2 * _HALF_AS_BITS), BFLOAT16)


def meet(wg: Warpgroup, meetings: Mask, bit: int | Int[Array, ""]) -> Mask:
    """Where the row's token reads the column's at level m = 2^bit."""
    if wg.plan.causal:  # of the two ways, that to earlier tokens
        off = meetings + _number(bit + 1)
    else:
        off = meetings * meetings - _number((bit + 1) * (bit + 1))
    return jnp.maximum(_number(1) - off * off, _number(0))


def decays_to_midpoint(
    wg: Warpgroup, meetings: Mask, bit: int | Int[Array, ""], *, transposed: bool = False
) -> Mask:
    """Where the column's decay lies strictly between the row's token and its block's midpoint.

    For token t right of the midpoint those from the midpoint to t - 1, for one left of it those
    from t + 1 to the midpoint. `transposed` changes row and column.
    """
    axis, columns = int(transposed), meetings.shape[1]
    right = (wg.count(axis, meetings.shape[axis]) & (1 << bit)) != 0
    right = ~right if transposed else right
    towards = wg.spread(jnp.where(right, _number(-1), _number(1)), axis, columns) * meetings
    # Beyond the token, on the midpoint's side, and met at a level below: within its half block.
    inside = jnp.minimum(towards, _number(bit + 1) - towards)
    return _between_0_and_1(inside)


def decays_to_edge(meetings: Mask, left: int | Array, *, transposed: bool = False) -> Mask:
    """Where the column's token lies beyond the row's: up to the tile's left edge (1), or right."""
    return _between_0_and_1(_number(2 * left - 1 if transposed else 1 - 2 * left) * meetings)


def from_middle(meetings: Mask) -> Mask:
    """A half where the column's token is earlier than the row's, minus a half where it is not: sums
    from the middle of all of a tile's up to each token, less it.
    """
    earlier = _number(-2) * meetings - _number(1)  # 1 at least, or -1
    return jnp.maximum(jnp.minimum(earlier, _number(1)), _number(-1)) * _number(0.5)


def everywhere(wg: Warpgroup, marked: Bool[Array, ""]) -> Mask:
    """1, or 0, everywhere: sums all of a tile's rows or none."""
    return ones(wg) * jnp.where(marked, _number(1), _number(0))


def ones(wg: Warpgroup) -> Mask:
    """Sums all of a tile's rows, and gives the sum to each row."""
    return wg.constant(1, TILE, FLOAT16)


def _between_0_and_1(x: Mask) -> Mask:
    return jnp.maximum(jnp.minimum(x, _number(1)), _number(0))


def _number(x: float | Int[Array, ""]) -> Float16[Array, ""]:
    """One that is known only later is converted once."""
    if isinstance(x, int | float):
        return jnp.asarray(x, FLOAT16)
    return x.astype(jnp.float32).astype(FLOAT16)
