"""Products of decays over the tree of a tile, level by level, without a logarithm or a quotient.

Level m = 1, 2, 4, ... joins neighbouring blocks of m tokens. At level m every token knows, inside
its block of m, `before`, the product of the decays of the tokens before it, and `after`, of those
after it. A token of a right block reaches the midpoint by `before`, one of a left block by `after`:
that is the level's factor.

Arrays are [S, 8, C]: slabs of 8 tokens, one register high. From level 8 on a block is whole slabs,
and what was a selection by token is the choice of a slab, which costs no instruction.

Gradients of logarithms come down the same tree, as sums over exactly what each decay acts on.
"""

import dataclasses

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from rwkv_kernels.tpu.lanes import SUBLANES


@dataclasses.dataclass(frozen=True)
class Level:
    """What is known once blocks of m are joined; or the gradients of its logarithms.

    `total`: the product over each block. Below level 8 every token has its own block's; from there
    on there is one slab a block, with the same in all its rows.
    """

    m: int
    before: Float[Array, "S 8 C"]
    after: Float[Array, "S 8 C"]
    total: Float[Array, "blocks 8 C"]


def to_slabs(x: Float[Array, "R C"]) -> Float[Array, "S 8 C"]:
    return x.reshape(-1, SUBLANES, x.shape[-1])  # [R, C] -> [R / 8, 8, C]


def to_rows(x: Float[Array, "S 8 C"]) -> Float[Array, "R C"]:
    return x.reshape(-1, x.shape[-1])  # [S, 8, C] -> [8 S, C]


def single_tokens(decay: Float[Array, "S 8 C"]) -> Level:
    """Level 1: blocks of one token."""
    one = jnp.ones_like(decay)
    return Level(1, one, one, decay)


def factor(level: Level) -> Float[Array, "S 8 C"]:
    """The product from each token to the midpoint of its block of 2 m; for m = 1 all are 1."""
    if level.m < SUBLANES:
        return jnp.where(_right(level.m), level.before, level.after)
    parts = []
    for left, right in _pairs(level.m, level.before.shape[0]):
        parts += [level.after[left], level.before[right]]
    return _join(parts)


def join(level: Level) -> Level:
    """Blocks of m into blocks of 2 m."""
    m, total = level.m, level.total
    if m < SUBLANES:
        partner, on_right = _swap(m, total), _right(m)
        return Level(
            2 * m,
            level.before * jnp.where(on_right, partner, 1),
            level.after * jnp.where(on_right, 1, partner),
            total * partner,
        )
    before: list[Array] = []
    after: list[Array] = []
    joined: list[Array] = []
    for j, (left, right) in enumerate(_pairs(m, level.before.shape[0])):
        if right.start == right.stop:  # the sequence ends inside the left block
            before, after = [*before, level.before[left]], [*after, level.after[left]]
            joined.append(total[2 * j : 2 * j + 1])
            continue
        of_left, of_right = total[2 * j : 2 * j + 1], total[2 * j + 1 : 2 * j + 2]
        before += [level.before[left], level.before[right] * of_left]
        after += [level.after[left] * of_right, level.after[right]]
        joined.append(of_left * of_right)
    return Level(2 * m, _join(before), _join(after), _join(joined))


def join_gradient(m: int, dfactor: Float[Array, "S 8 C"], dlog: Level) -> Level:
    """`factor` and `join` at level m backwards: from gradients of logarithms to such, of level m.

    dfactor: of the level's factors; dlog: of what `join` gave.
    """
    if m < SUBLANES:
        on_right = _right(m)
        to_partner = _swap(m, dlog.total + jnp.where(on_right, dlog.before, dlog.after))
        return Level(
            m,
            dlog.before + jnp.where(on_right, dfactor, 0),
            dlog.after + jnp.where(on_right, 0, dfactor),
            dlog.total + to_partner,
        )
    before: list[Array] = []
    after: list[Array] = []
    total: list[Array] = []
    for j, (left, right) in enumerate(_pairs(m, dfactor.shape[0])):
        of_both = dlog.total[j : j + 1]
        before.append(dlog.before[left])
        after.append(dlog.after[left] + dfactor[left])
        if right.start == right.stop:
            # An end inside the left block leaves it nothing to reach: dfactor is 0 there.
            total.append(of_both)
            continue
        before.append(dlog.before[right] + dfactor[right])
        after.append(dlog.after[right])
        total.append(of_both + jnp.sum(dlog.before[right], axis=0, keepdims=True))
        total.append(of_both + jnp.sum(dlog.after[left], axis=0, keepdims=True))
    return Level(m, _join(before), _join(after), _join(total))


def _right(m: int) -> Array:
    """Which sublanes lie in right blocks: bool [1, 8, 1]."""
    return lax.broadcasted_iota(jnp.int32, (1, SUBLANES, 1), 1) & m != 0


def _swap(m: int, x: Float[Array, "S 8 C"]) -> Float[Array, "S 8 C"]:
    """x of token t ^ m."""
    up = pltpu.roll(x, SUBLANES - m, 1)
    if 2 * m == SUBLANES:
        return up
    return jnp.where(_right(m), pltpu.roll(x, m, 1), up)


def _pairs(m: int, slabs: int) -> list[tuple[slice, slice]]:
    """The slabs of the left and the right half of every block of 2 m; the last may be cut off."""
    size = m // SUBLANES
    return [
        (slice(i, min(i + size, slabs)), slice(min(i + size, slabs), min(i + 2 * size, slabs)))
        for i in range(0, slabs, 2 * size)
    ]


def _join(parts: list[Array]) -> Array:
    parts = [part for part in parts if part.shape[0]]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=0)
