"""What the backward kernel sums up: gradients of r, k and log d, by where they come from.

A token's r and k meet others' decayed, as r c and k c with c a product of decays. So what comes
through a level, another tile or a state are gradients of r c and k c: times c they are those of r
and k, and r c and k c times them is the gradient of log c, which is that of all log decays in c.

All that is summed up stays in registers, in two halves of a head's channels; the rest is read from
shared memory wherever it is used, since registers are short.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, BFloat16, Float, Float16, Int

from rwkv_kernels.gpu import masks, tile
from rwkv_kernels.gpu.call import Block
from rwkv_kernels.gpu.plan import TILE
from rwkv_kernels.gpu.warpgroup import BFLOAT16, Lhs, Operand, Warpgroup


class Sums(NamedTuple):
    """Gradients of half a head's channels, float32 [64, n]: of r, k and log2 d / ln 2."""

    r: Array
    k: Array
    log_d: Array


class Held(NamedTuple):
    """A tile as products read it.

    r, k, v, g, log_d: [64, N]; dA: gradients of scores, A: scores, [64, 64].
    """

    r: Any
    k: Any
    v: Any
    g: Any
    log_d: Any
    dA: Any  # noqa: N815, as the formulas have it
    A: Any

    def operands(self) -> "Held":
        return Held(*map(Operand, self))


class Rooms(NamedTuple):
    """What a level works in: r c, k c, and c, after which comes the gradient of log c, [64, N];
    gradients of the level's scores, [64, 64].
    """

    X: Any
    Y: Any
    E: Any
    D: Any

    def operands(self) -> "Rooms":
        return Rooms(*map(Operand, self))


def of_bonus(
    wg: Warpgroup, held: Held, room: Operand, of_itself: Float[Array, "64"]
) -> list[Array]:
    """Of u, by halves, the same in all rows: y_t = (r_t . u . k_t) v_t.

    of_itself: the gradient of r_t . u . k_t.
    """
    r, k = Operand(held.r), Operand(held.k)
    for part in wg.halves:
        of_r_and_k = wg.load(r.columns(*part).ref) * wg.load(k.columns(*part).ref)
        wg.write(room.columns(*part), wg.spread(of_itself, 0, part[1]) * of_r_and_k)
    wg.store()
    mask = masks.of_bfloat16(masks.rows_from(wg))
    return [wg.product(mask, room.columns(*part)) for part in wg.halves]


def of_tokens_themselves(wg: Warpgroup, held: Held, u, of_itself: Float[Array, "64"]) -> list[Sums]:
    """Of y_t = (r_t . u . k_t) v_t; u [N] in main memory."""
    sums = []
    for part in wg.halves:
        over = wg.spread(of_itself, 0, part[1]) * wg.load_row(u.at[pl.ds(*part)])
        r, k = (wg.load(Operand(x).columns(*part).ref) for x in (held.r, held.k))
        sums.append(Sums(over * k, over * r, wg.zeros(part[1])))
    return sums


def through_levels(
    wg: Warpgroup, block: Block, sums: list[Sums], of_held: Held, of_rooms: Rooms, of_met
) -> list[Sums]:
    """What a tile's tokens say to one another. Leaves the scores in the room of A."""
    r, k, _, _, _, dA, A = block.own(of_held).operands()
    D = block.own(of_rooms).operands().D

    # At the first level nothing lies between.
    meet = masks.of_bfloat16(masks.meet(wg, wg.load_raw(block.own(of_met)), jnp.int32(0)))
    scores = wg.product(r, k.T).astype(BFLOAT16)
    wg.store((A, meet * scores), (D, meet * wg.load_raw(dA.ref)))
    for at, part in enumerate(wg.halves):
        of_r, of_k = wg.products((D, k.columns(*part)), (D.T, r.columns(*part)))
        sums[at] = Sums(sums[at].r + of_r, sums[at].k + of_k, sums[at].log_d)

    def level(bit: Int[Array, ""], sums: list[Sums]) -> list[Sums]:
        r, k, _, _, log_d, dA, A = block.own(of_held, anew=bit).operands()
        X, Y, E, D = block.own(of_rooms, anew=bit).operands()

        def met() -> Array:
            return wg.load_raw(block.own(of_met, anew=bit))

        c = tile.product_of_decays(wg, masks.decays_to_midpoint(wg, met(), bit), log_d)
        wg.wait_for_readers()
        wg.store((X, wg.load(r.ref) * c), (Y, wg.load(k.ref) * c), (E, _as_bits(c)))
        scores = wg.product(X, Y.T).astype(BFLOAT16)
        meet = masks.of_bfloat16(masks.meet(wg, met(), bit))
        wg.store((A, wg.load_raw(A.ref) + meet * scores), (D, meet * wg.load_raw(dA.ref)))
        sums = _add(wg, sums, (D, Y), (D.T, X), (r, k, E, X), wg.wait_for_readers)
        mask = masks.decays_to_midpoint(wg, met(), bit, transposed=True)
        return _add_of_log(wg, sums, mask, E, X)

    return lax.fori_loop(1, block.levels, level, sums)


def through_other_tile(
    wg: Warpgroup, block: Block, sums: list[Sums], of_held: Held, of_rooms: Rooms, of_met
) -> list[Sums]:
    """One level more, of which a pair's tiles are the halves.

    Leaves the scores of the other tile's tokens with this one's, transposed, in the room of dA.
    """
    r, k, v, g, log_d, room, _ = block.own(of_held, anew=1).operands()
    X, Y, E, _ = block.own(of_rooms, anew=1).operands()
    other = block.others(of_held, anew=1).operands()
    other_X, other_Y, *_ = block.others(of_rooms, anew=1).operands()

    def met() -> Array:
        return wg.load_raw(block.own(of_met, anew=1))

    c = tile.product_of_decays(wg, masks.decays_to_other(met(), block.index), log_d)
    wg.wait_for_readers()
    wg.store((X, wg.load(r.ref) * c), (Y, wg.load(k.ref) * c), (E, _as_bits(c)))
    block.wait_for_all()
    wg.write(room, wg.product(Y, other_X.T))
    of_r = wg.product(g, other.v.T).astype(BFLOAT16)
    of_k = wg.product(v, other.g.T).astype(BFLOAT16)
    sums = _add(wg, sums, (of_r, other_Y), (of_k, other_X), (r, k, E, X), block.wait_for_all)
    mask = masks.decays_to_other(met(), block.index, transposed=True)
    return _add_of_log(wg, sums, mask, E, X)


def through_states(
    wg: Warpgroup, block: Block, sums: list[Sums], of_held: Held, of_rooms: Sequence, sides, of_met
) -> list[Sums]:  # fmt: skip
    """What comes through the states at the tile's borders.

    of_rooms: two operands and a state. sides: for each whether it is the left one, the state that
    is said there and the gradient of that which is asked there, or None.
    """
    parts = itertools.count(1)
    for left, said, asked in sides:
        anew = next(parts)
        held = block.own(of_held, anew=anew).operands()
        E, c_, _ = map(Operand, block.own(of_rooms, anew=anew))
        mask = masks.decays_to_edge(wg.load_raw(block.own(of_met, anew=anew)), left=left)
        wg.wait_for_readers()
        wg.write(c_, tile.product_of_decays(wg, mask, held.log_d))
        before = None
        for name, there, by in (("r", said, "g"), ("k", asked, "v")):
            if there is None:
                continue
            anew = next(parts)
            held = block.own(of_held, anew=anew).operands()
            E, c_, state = map(Operand, block.own(of_rooms, anew=anew))
            block.fill([(there, state.ref)])
            new = []
            for part, x in zip(wg.halves, sums, strict=True):
                e, own = E.columns(*part), getattr(held, name).columns(*part)
                over = wg.product(getattr(held, by), state.columns(*part))
                over = over * wg.load(c_.columns(*part).ref)
                of_log = over * wg.load(own.ref)
                wg.write(e, of_log if before is None else wg.load(e.ref) + of_log)
                new.append(x._replace(**{name: getattr(x, name) + over}))
            before = sums = new
        wg.store()
        met = wg.load_raw(block.own(of_met, anew=anew))
        sums = _add_of_log(wg, sums, masks.decays_to_edge(met, left=left, transposed=True), E)
        wg.wait_for_readers()
    return sums


def through_whole_tile(
    wg: Warpgroup, block: Block, sums: list[Sums], of_log_d, of_room, passing: list[list]
) -> list[Sums]:
    """All of a tile's decays act on states that pass.

    passing: what goes one way and the gradient that comes the other, in main memory.
    """
    new = []
    for part, x in zip(wg.halves, sums, strict=True):
        columns = pl.ds(*part)
        own = (block.own(ref, anew=-1 - part[0]) for ref in (of_log_d, of_room))
        log_d, room = (Operand(ref).columns(*part) for ref in own)
        of_total, seen = wg.zeros(part[1]), 0
        for first in wg.plan.state_blocks:
            rows = pl.ds(first, TILE)
            products = [
                wg.load(said.at[rows, columns]) * wg.load(asked.at[rows, columns])
                for said, asked in passing
            ]
            wg.wait_for_readers()
            wg.store((room, functools.reduce(jnp.add, products)))
            mask = masks.of_bfloat16(masks.rows_from(wg, seen - first))
            of_total = of_total + wg.product(mask, room)
            seen = first + TILE
        total = jnp.exp2(tile.log2_product(wg, masks.rows_from(wg), log_d))
        new.append(Sums(x.r, x.k, x.log_d + of_total * total))
    return new


def _add(
    wg: Warpgroup, sums: list[Sums], to_r, to_k, own: Sequence[Operand], wait: Callable[[], None]
) -> list[Sums]:
    """Adds what comes to r and k, and leaves the gradient of log c in the room of c and another.

    Its sums over tokens nearly cancel: it is held in two parts.

    to_r, to_k: pairs whose products are the gradients of r c and k c; own: r, k, c as bits, and the
    other room; wait: until nobody reads what was there.
    """
    new = []
    (by_r, of_keys), (by_k, of_readers) = to_r, to_k
    for part, x in zip(wg.halves, sums, strict=True):
        r, k, E, room = (z.columns(*part) for z in own)
        of_r, of_k = wg.products((by_r, of_keys.columns(*part)), (by_k, of_readers.columns(*part)))
        c = _of_bits(wg.load_raw(E.ref))
        of_r, of_k = of_r * c, of_k * c
        high, low = wg.split(of_r * wg.load(r.ref) + of_k * wg.load(k.ref))
        wait()
        wg.write(E, high)
        wg.write(room, low)
        new.append(Sums(x.r + of_r, x.k + of_k, x.log_d))
    wg.store()
    return new


def _as_bits(c: Float[Array, "64 n"]) -> BFloat16[Array, "64 n"]:
    """c, from 0 to 1, in the room of a bfloat16 but with 10 bits of its 8.

    The sign of such a number and the highest bit of its exponent are 0 and can be left out.
    """
    bits = lax.bitcast_convert_type(c, jnp.uint32) + jnp.uint32(1 << 13)  # rounded
    return lax.bitcast_convert_type((bits >> 14).astype(jnp.uint16), BFLOAT16)


def _of_bits(bits: BFloat16[Array, "64 n"]) -> Float[Array, "64 n"]:
    number = lax.bitcast_convert_type(bits, jnp.uint16).astype(jnp.uint32)
    return lax.bitcast_convert_type(number << 14, jnp.float32)


def _add_of_log(
    wg: Warpgroup, sums: list[Sums], mask: Float16[Array, "64 64"], *of_log: Operand
) -> list[Sums]:
    """of_log: parts of gradients of log c; mask: which log decays (row) are in which token's."""
    mask = masks.of_bfloat16(mask)
    pairs: list[tuple[Lhs, *tuple[Operand, ...]]] = [
        (mask, *(x.columns(*part) for x in of_log)) for part in wg.halves
    ]
    products = wg.products(*pairs)
    return [Sums(x.r, x.k, x.log_d + y) for x, y in zip(sums, products, strict=True)]
