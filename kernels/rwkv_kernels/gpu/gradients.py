"""What the backward kernel sums up: gradients of r, k and log d, by where they come from.

A token's r and k meet others' decayed, as r c and k c with c a product of decays. So what comes
through a level, another tile or a state are gradients of r c and k c: times c they are those of r
and k, and r c and k c times them is the gradient of log c, which is that of all log decays in c.

All that is summed up stays in registers, in two halves of a head's channels; the rest is read from
shared memory wherever it is used, since registers are short.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, BFloat16, Int

from rwkv_kernels.gpu import masks, tile
from rwkv_kernels.gpu.call import Block
from rwkv_kernels.gpu.plan import TILE
from rwkv_kernels.gpu.warpgroup import BFLOAT16, Operand, Warpgroup

Meetings = Callable[[], BFloat16[Array, "64 64"]]  # `masks.meetings`, from shared memory each time


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


def of_tokens_themselves(
    wg: Warpgroup, block: Block, held: Held, u, room: Operand
) -> tuple[list[Sums], list[Array]]:
    """Of y_t = (r_t . u . k_t) v_t; and the gradient of u by halves, the same in all rows."""
    held = held.operands()
    of_bonus = wg.sum_of_columns(wg.load(held.g.ref) * wg.load(held.v.ref))
    sums = []
    for part in wg.halves:
        bonus = wg.load_row(u.at[block.head, pl.ds(*part)])
        r, k = (wg.load(x.columns(*part).ref) for x in (held.r, held.k))
        over_r, over_k = (wg.spread(of_bonus, 0, part[1]) * x for x in (k, r))
        wg.write(room.columns(*part), over_k * k)
        sums.append(Sums(over_r * bonus, over_k * bonus, wg.zeros(part[1])))
    wg.store()
    every_row = [wg.product(masks.rows_from(wg), room.columns(*part)) for part in wg.halves]
    return sums, every_row


def through_levels(
    wg: Warpgroup, block: Block, sums: list[Sums], held: Held, rooms: Rooms, met: Meetings
) -> list[Sums]:
    """What a tile's tokens say to one another. Leaves the scores in the room of A."""
    r, k, _, _, log_d, dA, A = held.operands()
    X, Y, E, D = rooms.operands()

    # At the first level nothing lies between.
    meet = masks.meet(wg, met(), jnp.int32(0))
    scores = wg.product(r, k.T).astype(BFLOAT16)
    wg.store((A, meet * scores), (D, meet * wg.load_raw(dA.ref)))
    for at, part in enumerate(wg.halves):
        of_r, of_k = wg.products((D, k.columns(*part)), (D.T, r.columns(*part)))
        sums[at] = Sums(sums[at].r + of_r, sums[at].k + of_k, sums[at].log_d)

    def level(bit: Int[Array, ""], sums: list[Sums]) -> list[Sums]:
        c = tile.product_of_decays(wg, masks.decays_to_midpoint(wg, met(), bit), log_d)
        wg.wait_for_readers()
        wg.store((X, wg.load_raw(r.ref) * c), (Y, wg.load_raw(k.ref) * c), (E, c))
        scores = wg.product(X, Y.T).astype(BFLOAT16)
        meet = masks.meet(wg, met(), bit)
        wg.store((A, wg.load_raw(A.ref) + meet * scores), (D, meet * wg.load_raw(dA.ref)))
        sums = _add(wg, sums, (D, Y), (D.T, X), (X, Y, E))
        mask = masks.decays_to_midpoint(wg, met(), bit, transposed=True)
        return _add_of_log(wg, sums, mask, E)

    return lax.fori_loop(1, block.levels, level, sums)


def through_other_tile(
    wg: Warpgroup, block: Block, sums: list[Sums], held: Held, rooms: Rooms,
    of_other: tuple[Held, Rooms], met: Meetings,
) -> list[Sums]:  # fmt: skip
    """One level more, of which a pair's tiles are the halves.

    Leaves the scores of the other tile's tokens with this one's, transposed, in the room of dA.
    """
    r, k, v, g, log_d, room, _ = held.operands()
    X, Y, E, _ = rooms.operands()
    other, (other_X, other_Y, *_) = of_other[0].operands(), of_other[1].operands()
    c = tile.product_of_decays(wg, masks.decays_to_other(met(), block.index), log_d)
    wg.wait_for_readers()
    wg.store((X, wg.load_raw(r.ref) * c), (Y, wg.load_raw(k.ref) * c), (E, c))
    block.wait_for_all()
    scores, of_r, of_k = wg.products((Y, other_X.T), (g, other.v.T), (v, other.g.T))
    wg.write(room, scores)
    of_r, of_k = of_r.astype(BFLOAT16), of_k.astype(BFLOAT16)
    sums = _add(wg, sums, (of_r, other_Y), (of_k, other_X), (X, Y, E))
    mask = masks.decays_to_other(met(), block.index, transposed=True)
    return _add_of_log(wg, sums, mask, E)


def through_states(
    wg: Warpgroup, block: Block, sums: list[Sums], held: Held, rooms: Sequence, sides, met: Meetings
) -> list[Sums]:
    """What comes through the states at the tile's borders.

    rooms: two operands and a state. sides: for each whether it is the left one, the state that is
    said there and the gradient of that which is asked there, or None.
    """
    held = held.operands()
    E, c_, state = map(Operand, rooms)
    for left, said, asked in sides:
        mask = masks.decays_to_edge(met(), left=left)
        wg.wait_for_readers()
        wg.write(c_, tile.product_of_decays(wg, mask, held.log_d))
        before = None
        for name, there, by in (("r", said, held.g), ("k", asked, held.v)):
            if there is None:
                continue
            block.fill([(there, state.ref)])
            new = []
            for part, x in zip(wg.halves, sums, strict=True):
                e, own = E.columns(*part), getattr(held, name).columns(*part)
                over = wg.product(by, state.columns(*part)) * wg.load(c_.columns(*part).ref)
                of_log = over * wg.load(own.ref)
                wg.write(e, of_log if before is None else wg.load(e.ref) + of_log)
                new.append(x._replace(**{name: getattr(x, name) + over}))
            before = sums = new
        wg.store()
        mask = masks.decays_to_edge(met(), left=left, transposed=True)
        sums = _add_of_log(wg, sums, mask, E)
        wg.wait_for_readers()
    return sums


def through_whole_tile(
    wg: Warpgroup, sums: list[Sums], log_d: Operand, room: Operand, passing: list[list]
) -> list[Sums]:
    """All of a tile's decays act on states that pass.

    passing: what goes one way and the gradient that comes the other, in main memory.
    """
    new = []
    for part, x in zip(wg.halves, sums, strict=True):
        columns = pl.ds(*part)
        of_total, seen = wg.zeros(part[1]), 0
        for first in wg.plan.state_blocks:
            rows = pl.ds(first, TILE)
            products = [
                wg.load(said.at[rows, columns]) * wg.load(asked.at[rows, columns])
                for said, asked in passing
            ]
            wg.wait_for_readers()
            wg.store((room.columns(*part), functools.reduce(jnp.add, products)))
            mask = masks.rows_from(wg, seen - first)
            of_total = of_total + wg.product(mask, room.columns(*part))
            seen = first + TILE
        total = jnp.exp2(wg.product(masks.rows_from(wg), log_d.columns(*part)))
        new.append(Sums(x.r, x.k, x.log_d + of_total * total))
    return new


def _add(wg: Warpgroup, sums: list[Sums], to_r, to_k, own: Sequence[Operand]) -> list[Sums]:
    """Adds what comes to r and k, and leaves the gradient of log c in the room of c.

    to_r, to_k: pairs whose products are the gradients of r c and k c; own: r c, k c and c.
    """
    new = []
    for part, x in zip(wg.halves, sums, strict=True):
        X, Y, E = (z.columns(*part) for z in own)
        (by_r, of_keys), (by_k, of_readers) = to_r, to_k
        of_r, of_k = wg.products((by_r, of_keys.columns(*part)), (by_k, of_readers.columns(*part)))
        c = wg.load(E.ref)
        wg.write(E, of_r * wg.load(X.ref) + of_k * wg.load(Y.ref))
        new.append(Sums(x.r + of_r * c, x.k + of_k * c, x.log_d))
    wg.store()
    return new


def _add_of_log(
    wg: Warpgroup, sums: list[Sums], mask: BFloat16[Array, "64 64"], of_log: Operand
) -> list[Sums]:
    """of_log: gradients of log c; mask: which log decays (row) are in which token's log c."""
    products = wg.products(*((mask, of_log.columns(*part)) for part in wg.halves))
    return [Sums(x.r, x.k, x.log_d + y) for x, y in zip(sums, products, strict=True)]
