"""What sixteen tokens that a warp holds say to one another: the first four levels, in registers.

Sixteen channels at a time, so that few registers are in use at once.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, BFloat16, Bool, Float, Float16, Int

from rwkv_kernels.gpu import masks, warp
from rwkv_kernels.gpu.sums import Sums
from rwkv_kernels.gpu.tile import scaled
from rwkv_kernels.gpu.warpgroup import BFLOAT16, Operand, Warpgroup

# Gives r and k, bfloat16 [64, 16], sixteen channels after the other; anew for each level, since
# registers are short.
Load = Callable[[int | Array], Iterator[tuple[Array, Array]]]


def scores(
    wg: Warpgroup,
    load: Load,
    log_d: Float16[Array, "64 n"],
    with_itself: Float[Array, "64"],
    meetings: Float16[Array, "64 16"],
    levels: int | Array,
) -> BFloat16[Array, "64 16"]:
    """A, with y = A v, of each token with its sixteen; levels: of all that the tile has."""
    turned = [warp.turned(wg, x) for x in sixteens(wg, log_d)]

    def level(bit: Int[Array, ""], A: Array) -> Array:
        mask = scaled(masks.decays_to_midpoint(wg, meetings, bit))
        met: Any = None
        for (r, k), log_d in zip(load(bit), turned, strict=True):
            c = jnp.exp2(warp.mix(wg, mask, log_d)).astype(BFLOAT16)
            met = warp.meet(wg, r * c, k * c, met)
        return A + masks.of_bfloat16(masks.meet(wg, meetings, bit)) * met.astype(BFLOAT16)

    # At the first level nothing lies between.
    met: Any = None
    for r, k in load(0):
        met = warp.meet(wg, r, k, met)
    A = masks.of_bfloat16(masks.meet(wg, meetings, 0)) * met.astype(BFLOAT16)
    return _levels(levels, level, A + on_diagonal(wg, with_itself).astype(BFLOAT16))


def gradients(
    wg: Warpgroup,
    load: Load,
    log_d: Float16[Array, "64 n"],
    with_itself: Float[Array, "64"],
    dA: BFloat16[Array, "64 16"],
    meetings: Float16[Array, "64 16"],
    levels: int | Array,
) -> tuple[list[Sums], BFloat16[Array, "64 16"]]:
    """What comes through the scores, whose gradients are dA, by halves of the channels; and the
    scores.

    levels: of all that the tile has.
    """
    logs = [warp.turned(wg, x) for x in sixteens(wg, log_d)]
    parts: list[Sums] = []

    # At the first level nothing lies between.
    meet = masks.of_bfloat16(masks.meet(wg, meetings, 0))
    D = meet * dA
    D_transposed = warp.transposed(wg, D)
    met: Any = None
    for r, k in load(0):
        met = warp.meet(wg, r, k, met)
        of_r = warp.mix(wg, D, warp.turned(wg, k))
        of_k = warp.mix(wg, D_transposed, warp.turned(wg, r))
        parts.append(Sums(of_r, of_k, wg.zeros(warp.SIXTEEN)))
    A = meet * met.astype(BFLOAT16) + on_diagonal(wg, with_itself).astype(BFLOAT16)

    def level(bit: Int[Array, ""], carry):
        parts, A = carry
        mask = scaled(masks.decays_to_midpoint(wg, meetings, bit))
        back = masks.of_bfloat16(masks.decays_to_midpoint(wg, meetings, bit, transposed=True))
        meet = masks.of_bfloat16(masks.meet(wg, meetings, bit))
        D = meet * dA
        D_transposed = warp.transposed(wg, D)
        new: list[Sums] = []
        met: Any = None
        for (r, k), log_d, x in zip(load(bit), logs, parts, strict=True):
            c = jnp.exp2(warp.mix(wg, mask, log_d))
            X, Y = wg.float32(r) * c, wg.float32(k) * c
            X_, Y_ = X.astype(BFLOAT16), Y.astype(BFLOAT16)
            met = warp.meet(wg, X_, Y_, met)
            of_r = warp.mix(wg, D, warp.turned(wg, Y_))
            of_k = warp.mix(wg, D_transposed, warp.turned(wg, X_))
            of_log = x.log_d
            for part in wg.split(of_r * X + of_k * Y):
                of_log = warp.mix(wg, back, warp.turned(wg, part), of_log)
            new.append(Sums(x.r + of_r * c, x.k + of_k * c, of_log))
        return new, A + meet * met.astype(BFLOAT16)

    parts, A = _levels(levels, level, (parts, A))
    rest = iter(parts)
    cut = [itertools.islice(rest, x // warp.SIXTEEN) for _, x in wg.halves]
    return [Sums(*(warp.joined(wg, x) for x in zip(*of, strict=True))) for of in cut], A


def diagonal(wg: Warpgroup, A: Float[Array, "64 16"]) -> Float[Array, "64"]:
    """Each token with itself."""
    return wg.sum_of_columns(jnp.where(_itself(wg), A, 0.0))


def on_diagonal(wg: Warpgroup, x: Float[Array, "64"]) -> Float[Array, "64 16"]:
    """What each token has with itself, among its sixteen."""
    return jnp.where(_itself(wg), wg.spread(x, 0, warp.SIXTEEN), 0.0)


def _itself(wg: Warpgroup) -> Bool[Array, "64 16"]:
    row, column = (wg.index(warp.SIXTEEN, axis) for axis in (0, 1))
    return (row & (warp.SIXTEEN - 1)) == column


def _levels(levels: int | Array, level, carry):
    """Runs all levels but the first: 1, 2 and 3 for the logarithms of tokens to the midpoint."""
    if isinstance(levels, int):
        levels = min(levels, warp.LEVELS)
        return carry if levels <= 1 else lax.fori_loop(1, levels, level, carry)
    return lax.fori_loop(1, jnp.minimum(levels, warp.LEVELS), level, carry)


def sixteens(wg: Warpgroup, x: Float[Array, "64 n"]) -> list[Float[Array, "64 16"]]:
    """Its columns, sixteen at a time."""
    firsts = range(0, x.shape[1], warp.SIXTEEN)
    return [warp.columns(wg, x, first, warp.SIXTEEN) for first in firsts]


def of_operand(wg: Warpgroup, x: Operand) -> Iterator[Float[Array, "64 16"]]:
    """The columns of a tile in shared memory, sixteen at a time."""
    width = wg.swizzle // 2  # of memory's blocks, which are not cut
    for first in range(0, wg.width, width):
        yield from sixteens(wg, wg.load_raw(x.columns(first, width).ref))
