"""What the backward kernel sums up: gradients of r, k and log d, by where they come from.

A token's r and k meet others' decayed, as r c and k c with c a product of decays. So what comes
through a level, another tile or a state are gradients of r c and k c: times c they are those of r
and k, and r c and k c times them is the gradient of log c, which is that of all log decays in c.

All that is summed up stays in registers, in two halves of a head's channels; the rest is read from
shared memory wherever it is used, since registers are short.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, BFloat16, Float, Float16, Int

from rwkv_kernels.gpu import beside, gentle, masks, sixteens, tile, warp
from rwkv_kernels.gpu.call import Block
from rwkv_kernels.gpu.rooms import Held, Rooms
from rwkv_kernels.gpu.sums import Sums
from rwkv_kernels.gpu.warpgroup import BFLOAT16, Operand, Warpgroup

_SIXTEENS, _GENTLE = 98, 99  # for `Block.own`: parts of the kernel


def of_bonus(
    wg: Warpgroup, held: Held, room: Operand, u, of_itself: Float[Array, "64"]
) -> tuple[Float[Array, "64"], list[Array]]:
    """r_t . u . k_t, and the gradient of u, the same in all rows, by halves; u [N] in main memory.

    of_itself: the gradient of r_t . u . k_t.
    """
    with_itself = []
    for part in wg.halves:
        r, k = (wg.load(x.columns(*part).ref) for x in (held.r, held.k))
        both = r * k
        with_itself.append(wg.sum_of_columns(both * wg.load_row(u.at[pl.ds(*part)])))
        wg.write(room.columns(*part), wg.spread(of_itself, 0, part[1]) * both)
    wg.store()
    mask = masks.of_bfloat16(masks.ones(wg))
    of_u = wg.products(*((mask, room.columns(*part)) for part in wg.halves))
    return functools.reduce(jnp.add, with_itself), of_u


def with_bonus(
    wg: Warpgroup, held: Held, u, of_itself: Float[Array, "64"], sums: list[Sums]
) -> list[Sums]:
    """sums with what comes through r_t . u . k_t, whose gradient is of_itself."""
    new = []
    for part, x in zip(wg.halves, sums, strict=True):
        of_bonus = wg.spread(of_itself, 0, part[1]) * wg.load_row(u.at[pl.ds(*part)])
        of_r = x.r + of_bonus * wg.load(held.k.columns(*part).ref)
        of_k = x.k + of_bonus * wg.load(held.r.columns(*part).ref)
        new.append(Sums(of_r, of_k, x.log_d))
    return new


def through_levels(
    wg: Warpgroup, block: Block, of_held: Held, of_rooms: Rooms, with_itself: Float[Array, "64"],
    of_sixteen, bits,
) -> list[Sums]:  # fmt: skip
    """What a tile's tokens say to one another. Leaves the scores in the room of A.

    with_itself: r_t . u . k_t; of_sixteen: meetings of each token's sixteen, and bits: `masks.bits`
    of them, in main memory.
    """

    def load(bit: int | Array) -> Iterator[tuple[Array, Array]]:
        held = block.own(of_held, anew=bit).operands()
        yield from zip(*(sixteens.of_operand(wg, x) for x in (held.r, held.k)), strict=True)

    def meetings(anew: int | Array) -> Float16[Array, "64 16"]:
        return wg.load_raw(block.only(of_sixteen, anew=anew))

    def by_levels() -> list[Sums]:
        held = block.own(of_held, anew=_SIXTEENS).operands()
        v, g, log_d = (wg.load_raw(x.ref) for x in (held.v, held.g, held.log_d))
        dA = warp.meet(wg, g, v).astype(BFLOAT16)
        if wg.plan.levels > warp.LEVELS:
            wg.write(held.dA, wg.product(held.g, held.v.T))
        of_levels = meetings(_SIXTEENS), block.levels
        sums, A = sixteens.gradients(wg, load, log_d, with_itself, dA, *of_levels)
        wg.write(held.A, beside.zeros(wg, A))
        if wg.plan.levels <= warp.LEVELS:
            wg.store()
            return sums
        return lax.fori_loop(warp.LEVELS, block.levels, level, sums)

    def at_once() -> list[Sums]:
        return gentle.gradients(wg, block, of_held, of_rooms, with_itself, meetings, bits, answer)

    def level(bit: Int[Array, ""], sums: list[Sums]) -> list[Sums]:
        held = block.own(of_held, anew=bit).operands()
        r, k, log_d, A, dA = held.r, held.k, held.log_d, held.A, held.dA
        X, Y, E, D, _ = block.own(of_rooms, anew=bit).operands()

        def met(part: int) -> Float16[Array, "64 64"]:
            return beside.meetings(wg, meetings(bit + part))

        mask = tile.scaled(masks.decays_to_midpoint(wg, met(0), bit))
        wg.wait_for_readers()
        of_parts = []
        for part in wg.halves:
            c = tile.product_of_decays(wg, mask, log_d.columns(*part))
            wg.write(X.columns(*part), wg.load(r.columns(*part).ref) * c)
            wg.write(Y.columns(*part), wg.load(k.columns(*part).ref) * c)
            of_parts.append(c)
        wg.store()
        c = warp.joined(wg, of_parts)
        scores = wg.product(X, Y.T).astype(BFLOAT16)
        meet = masks.of_bfloat16(masks.meet(wg, met(8), bit))
        wg.store((A, wg.load_raw(A.ref) + meet * scores), (D, meet * wg.load_raw(dA.ref)))
        sums = _add(wg, sums, c, (D, Y), (D.T, X), (r, k), (E, X), wg.wait_for_readers)
        mask = masks.decays_to_midpoint(wg, met(16), bit, transposed=True)
        return add_of_log(wg, sums, masks.of_bfloat16(mask), E, X)

    def empty_rooms() -> None:
        block.wait_for_writes()  # of the gradient of u
        block.wait_for_all()

    if wg.plan.levels <= warp.LEVELS:
        empty_rooms()
        return by_levels()
    count, held = block.tokens_in(block.part), block.own(of_held, anew=_GENTLE).operands()
    answer = gentle.ask(wg, count, meetings(_GENTLE), held.log_d)
    empty_rooms()
    return lax.cond(answer.gentle != 0, at_once, by_levels)


def through_other_tile(
    wg: Warpgroup, block: Block, sums: list[Sums], of_held: Held, of_rooms: Rooms, of_sixteen
) -> list[Sums]:
    """One level more, of which a pair's tiles are the halves.

    Leaves the scores of the other tile's tokens with this one's, transposed, in the room of dA.
    """
    held = block.own(of_held, anew=1).operands()
    r, k, v, g, log_d, room = held.r, held.k, held.v, held.g, held.log_d, held.dA
    X, Y, E, D, _ = block.own(of_rooms, anew=1).operands()
    other = block.of(1 - block.index, of_held, anew=1).operands()
    other_X, other_Y, *_ = block.of(1 - block.index, of_rooms, anew=1).operands()

    own = wg.load_raw(block.only(of_sixteen, anew=1))
    mask = beside.to_edge(wg, own, block.index, one=tile.ONE)
    c = tile.product_of_decays(wg, mask, log_d)
    wg.wait_for_readers()
    wg.store((X, wg.load(r.ref) * c), (Y, wg.load(k.ref) * c))
    block.wait_for_all()
    wg.write(room, wg.product(Y, other_X.T))
    of_r, of_k = wg.products((g, other.v.T), (v, other.g.T))
    of_r = of_r.astype(BFLOAT16)
    wg.store((D, of_k))
    sums = _add(wg, sums, c, (of_r, other_Y), (D, other_X), (r, k), (E, X), block.wait_for_all)
    own = wg.load_raw(block.only(of_sixteen, anew=2))
    mask = beside.to_edge(wg, own, block.index, transposed=True, one=masks.ONE_AS_BITS)
    return add_of_log(wg, sums, masks.bits_as_bfloat16(mask), E, X)


def _add(
    wg: Warpgroup, sums: list[Sums], c: Float[Array, "64 n"], to_r, to_k, own: Sequence[Operand],
    rooms: Sequence[Operand], wait: Callable[[], None],
) -> list[Sums]:  # fmt: skip
    """Adds what comes to r and k, and leaves the gradient of log c in two rooms.

    Its sums over tokens nearly cancel: it is held in two parts.

    to_r, to_k: pairs whose products are the gradients of r c and k c; own: r and k; wait: until
    nobody reads any more what is in the rooms.
    """
    new = []
    (by_r, of_keys), (by_k, of_readers) = to_r, to_k
    for part, x in zip(wg.halves, sums, strict=True):
        r, k, *parts = (z.columns(*part) for z in (*own, *rooms))
        of_r, of_k = wg.products((by_r, of_keys.columns(*part)), (by_k, of_readers.columns(*part)))
        of_c = warp.columns(wg, c, *part)
        of_r, of_k = of_r * of_c, of_k * of_c
        of_log = wg.split(of_r * wg.load(r.ref) + of_k * wg.load(k.ref))
        wait()
        for room, of_part in zip(parts, of_log, strict=True):
            wg.write(room, of_part)
        new.append(Sums(x.r + of_r, x.k + of_k, x.log_d))
    wg.store()
    return new


def add_of_log(
    wg: Warpgroup, sums: list[Sums], mask: BFloat16[Array, "64 64"], *of_log: Operand
) -> list[Sums]:
    """of_log: parts of gradients of log c; mask: which log decays (row) are in which token's."""
    of_parts = ([(mask, y.columns(*part)) for y in of_log] for part in wg.halves)
    totals = wg.add_products([x.log_d for x in sums], *of_parts)
    return [x._replace(log_d=total) for x, total in zip(sums, totals, strict=True)]
