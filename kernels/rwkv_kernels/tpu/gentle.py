"""A tile whose decays are gentle: all of its tokens meet at once, in the place of its levels.

Levels never divide decays. Here they are divided, within bounds. Of each channel, let `before` and
`after` be the products of the decays of the tokens before and after one, and `total` that of all.
What lies between s and a later t is before_t after_s / total = P_t Q_s, with before / sqrt(total)
as P and after / sqrt(total) as Q; between s and an earlier t it is Q_t P_s. So r P meets k Q on one
side of the diagonal, and r Q meets k P on the other: two masked products. P and Q are at most the
root of one over what a channel decays in the tile. While that is no more than 2^58 nothing
overflows (if r and k are below 2^69, as nothing sane is above), and r P in bfloat16 has as many
digits as r c has at a level.

The gradient of a log decay is then a difference of sums over the tile. What has no part in it
cancels, since both are sums of the same products of rounded numbers (with others, w's gradient in
bfloat16 was off by 3e-2 of its maximum, not 5e-3), but for float32's rounding. So no single decay
may be so strong that what remains is as small as that.

Tiles are asked while the kernel runs. Those that are not gentle take the levels, which hold for any
decays.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from rwkv_kernels.tpu.lanes import Lanes
from rwkv_kernels.tpu.levels import Level, to_rows

# The least that is left of a channel after a tile, and after a token: with exp(-3) for the latter,
# gradients of w in float32 were off by 4e-6 of their maximum, with exp(-2) by less than 3e-6.
LEAST_TOTAL, LEAST_DECAY = 2.0**-116, math.exp(-2)

Result = TypeVar("Result")


class Factors(NamedTuple):
    """What r and k are multiplied by before they meet: P the later one of a pair, Q the earlier."""

    P: Float[Array, "R C"]
    Q: Float[Array, "R C"]


def choose(
    decay: Float[Array, "R C"],
    edges: Level,
    at_once: Callable[[], Result],
    by_levels: Callable[[], Result],
) -> Result:
    """at_once() of a tile whose decays are gentle, by_levels() of others (or NaN).

    edges: products to the tile's edges (`tile.edges`).
    """
    least = jnp.min(decay, axis=0, keepdims=True) / LEAST_DECAY
    least = jnp.minimum(least, edges.total[0, :1] / LEAST_TOTAL)
    return lax.cond(jnp.min(least) >= 1, at_once, by_levels)


def factors(edges: Level) -> Factors:
    """Of a gentle tile: `total` is no subnormal number."""
    root = lax.rsqrt(edges.total[0, :1])
    return Factors(to_rows(edges.before) * root, to_rows(edges.after) * root)


def rounded(lanes: Lanes, x: Float[Array, "R C"]) -> Float[Array, "R C"]:
    """x as products see it: what cancels must be the same on both sides."""
    return lanes.operand(x).astype(jnp.float32)
