"""Which tokens of a tile meet which: masks [64, 64], made in registers from row and column.

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

Sums of decays' logs are products with masks of zeros and ones, in bfloat16.
"""

import jax.numpy as jnp
from jaxtyping import Array

from rwkv_kernels.gpu.warpgroup import BFLOAT16, Warpgroup


def same(wg: Warpgroup) -> Array:
    """Whether row and column are one token."""
    row, column = wg.position()
    return row == column


def meet(wg: Warpgroup, m: Array) -> Array:
    """Whether the row's token reads the column's at level m."""
    row, column = wg.position()
    differ = row ^ column
    at_level = (differ >= m) & (differ < 2 * m)
    if not wg.plan.causal:
        return at_level
    return at_level & (row > column)


def bits(wg: Warpgroup) -> Array:
    """The bit of the level at which two tokens meet, in bfloat16; -1 for a token with itself.

    In both directions, even where only one is read.
    """
    row, column = wg.position()
    differ = row ^ column
    bit = jnp.where(differ > 0, 0.0, -1.0)
    for larger in range(1, wg.plan.levels):
        bit = jnp.where(differ >= 1 << larger, float(larger), bit)
    return bit.astype(BFLOAT16)


def equal(bits: Array, bit: Array) -> Array:
    """1 where an array of whole numbers is that number: arithmetic on pairs of bfloat16.

    A choice by a condition would take each of a pair's numbers into a register of its own.
    """
    one = jnp.ones((), BFLOAT16)
    off = bits - bit.astype(jnp.float32).astype(BFLOAT16)
    return jnp.maximum(one - off * off, jnp.zeros((), BFLOAT16))


def read(wg: Warpgroup, *, transposed: bool = False) -> Array:
    """Whether the row's token reads the column's at all, or is it; `transposed`: is read by it."""
    row, column = wg.position()
    if not wg.plan.causal:
        return row >= 0
    return row <= column if transposed else row >= column


def decays_to_midpoint(wg: Warpgroup, m: Array, *, transposed: bool = False) -> Array:
    """1 where the column's decay lies strictly between the row's token and its block's midpoint.

    For token t right of the midpoint those from the midpoint to t - 1, for one left of it those
    from t + 1 to the midpoint. `transposed` changes row and column.
    """
    t, s = reversed(wg.position()) if transposed else wg.position()
    right = (t & m) != 0
    towards = (right & (s < t)) | (~right & (s > t))
    return _ones(((t & -m) == (s & -m)) & towards)


def decays_to_edge(wg: Warpgroup, *, left: bool, transposed: bool = False) -> Array:
    """1 where the column's token lies beyond the row's, on one side: up to an edge of the tile."""
    t, s = reversed(wg.position()) if transposed else wg.position()
    return _ones(s < t if left else s > t)


def rows_from(wg: Warpgroup, first: int = 0) -> Array:
    """1 from a column on: sums a tile's rows from that one on, and gives the sum to each row."""
    return _ones(wg.position()[1] >= first)


def _ones(mask: Array) -> Array:
    return jnp.where(mask, 1.0, 0.0).astype(BFLOAT16)
