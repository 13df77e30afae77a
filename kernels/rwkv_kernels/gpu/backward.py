"""The backward kernel: gradients of r, k, v, w and u, a tile of a head in each block of the grid.

Nothing but the inputs is read, and the states at the tile's borders. Of the scores A only those
transposed are made, for dv = A^T g; the gradient dA = g v^T is made both ways, since a product
takes its left operand from registers as it lies there.

The gradients of r, k and w of a channel need that channel of r, k and w, and dA. So warpgroups
share a head's channels, each has all it adds up in registers, and they meet twice: when v and g are
there, and for dv, which sums over channels.
""" 

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from rwkv_kernels.gpu import masks, tile
from rwkv_kernels.gpu.call import Block, kernel_call
from rwkv_kernels.gpu.plan import TILE, Plan
from rwkv_kernels.gpu.warpgroup import Operand, Warpgroup, split


class Borders(NamedTuple):
    """States [B, H, (tiles + 1) * parts, N, N] at all borders; None is nothing.

    What tokens on a side say, and what is asked of this side: the gradient of the state that goes
    to the other.
    """

    said_left: Array | None = None
    asked_left: Array | None = None
    said_right: Array | None = None
    asked_right: Array | None = None


def backward(
    plan: Plan,
    r: Float[Array, "B T C"],
    k: Float[Array, "B T C"],
    v: Float[Array, "B T C"],
    w: Float[Array, "B T C"],
    u: Float[Array, "H N"],
    g: Float[Array, "B T C"],
    borders: Borders,
    *,
    interpret=None,
) -> dict[str, Array]:
    """Gradients dr, dk, dv, dw (float32), and du by sequence and tile, float32 [B, tiles, C].

    g: the gradient of y, of the dtype of r, k and v, as dr, dk and dv are; w, u float32.
    """
    B, _, C = r.shape
    N = plan.head_size
    wg = Warpgroup(plan, plan.widths("backward"), interpret)
    any_state = any(x is not None for x in borders)

    def own(width: int):
        # float32 tokens of v and g come when w has gone.
        rounded = plan.parts == 1
        return {
            "r_": wg.tokens(width, r.dtype),
            "k_": wg.tokens(width, k.dtype),
            "v_": wg.tokens(width, v.dtype) if rounded else None,
            "g_": wg.tokens(width, g.dtype) if rounded else None,
            "log_d": wg.operand(width, parts=2),
            "X": wg.operand(width),
            "Y": wg.operand(width),
            "said": wg.operand(width, rows=N) if any_state else None,
            "asked": wg.operand(width, rows=N) if any_state else None,
        }

    shared = {
        "values": wg.operand(N),
        "gradients": wg.operand(N),
        "dA": wg.operand(TILE),
        "dA_T": wg.operand(TILE),
        "bits": wg.operand(TILE),
        "between": wg.masks(plan.levels + 1),
        "rooms": [wg.tokens(width, jnp.float32) for width in wg.widths],
    }
    inputs = {"r": r, "k": k, "v": v, "w": w, "u": u, "g": g, **borders._asdict()}
    outputs = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype)
        for name, x in zip(("dr", "dk", "dv", "dw"), (r, k, v, w), strict=True)
    }
    outputs["du"] = jax.ShapeDtypeStruct((B, plan.tiles, C), jnp.float32)
    return kernel_call(
        functools.partial(_kernel, wg), wg, inputs, outputs, own, shared,
        grid=(B, u.shape[0], plan.tiles), copies=5, name="wkv6_backward",
    )  # fmt: skip


def _kernel(
    wg: Warpgroup, block: Block, *, r, k, v, w, u, g,
    said_left, asked_left, said_right, asked_right,
    dr, dk, dv, dw, du, r_, k_, v_, g_, log_d, X, Y, said, asked,
    values, gradients, dA, dA_T, bits, between, rooms,
) -> None:  # fmt: skip
    parts, i = wg.plan.parts, lax.axis_index("part")
    log_d, X, Y, values, gradients, dA, dA_T, bits = (
        Operand(tuple(x)) for x in (log_d, X, Y, values, gradients, dA, dA_T, bits)
    )
    said, asked = (None if x is None else Operand(tuple(x)) for x in (said, asked))
    # What is summed over tokens is held in 16 bits, in the room of X and Y.
    working = Operand((X.parts + Y.parts)[:2])
    room = rooms[block.index]  # for w, then for d log d, then for what others have for dv, for dw

    sources = ((r, r_), (k, k_), (w, room), (v, v_), (g, g_))
    block.fill([(block.tokens(x, i), to) for x, to in sources if to is not None])
    log_d.store(tile.log_decay(wg, room, block.tokens_in(i)))
    for array, staged, operand in ((v, v_, values), (g, g_, gradients)):
        if staged is None:
            staged = room
            block.fill([(block.tokens(array, i), room)])
        operand.columns(block.first, block.width).store(wg.load(staged))
    # Which decays lie between a token and its block's midpoint at each level; the last, which are
    # to the left of it.
    for bit in range(block.index, wg.plan.levels + 1, len(wg.widths)):
        edge = bit == wg.plan.levels
        here = between.at[bit]
        here[...] = (
            masks.decays_to_edge(wg, left=True)
            if edge
            else masks.decays_to_midpoint(wg, jnp.int32(1 << bit))
        )
    block.meet()
    # Of what is not read there is no gradient.
    if block.index == 0:
        dA.store(jnp.where(masks.read(wg), wg.product(gradients, values.T), 0.0))
        bits.store((masks.bits(wg),))
    if block.index == len(wg.widths) - 1:
        every = wg.product(values, gradients.T)
        dA_T.store(jnp.where(masks.read(wg, transposed=True), every, 0.0))
    block.meet()

    # Each token with itself: y_t = (r_t . u . k_t) v_t.
    bonus = wg.load_row(u.at[block.head, block.own])
    X.store(wg.load(r_))
    Y.store(wg.load(k_))
    A_T = tile.own_scores(wg, wg.load(k_), bonus, X)
    own = tile.where(masks.same(wg), wg.load_parts(dA), 0.0)
    own_k = wg.product(own, Y)
    sum_r = own_k * bonus
    sum_k = wg.product(own, X) * bonus
    working.store(own_k * wg.load(r_))
    room[...] = wg.product((masks.rows_from(wg),), working)
    block.write_row(i, room, du)
    room[...] = wg.zeros(block.width)

    def add(sums, to_r, to_k, c: Array, mask: Operand):
        """Adds to dr, dk and d log d what comes through r c and k c, c a product of decays.

        to_r, to_k: the pairs whose products are the gradients of r c and k c, or None. mask: which
        decays (column) are in which token's c (row).
        """
        sum_r, sum_k = sums
        of_log = []
        if to_r is not None:
            part = wg.product(*to_r) * c
            sum_r += part
            of_log.append(part * wg.load(r_))
        if to_k is not None:
            part = wg.product(*to_k) * c
            sum_k += part
            of_log.append(part * wg.load(k_))
        working.store(functools.reduce(jnp.add, of_log))
        room[...] = wg.load(room) + wg.product(mask.T, working)
        return sum_r, sum_k

    def level(bit, carry):
        A_T, sums = carry
        mask = Operand((between.at[bit],))
        c = tile.product_of_decays(wg, mask, log_d)
        X.store(wg.load(r_) * c)
        keys = Y.store(wg.load(k_) * c)
        met = split(wg.product(keys, X.T), parts)
        (here,) = wg.load_parts(bits)
        meet = masks.equal(here, bit)
        A_T = tuple(x + meet * y for x, y in zip(A_T, met, strict=True))
        to_r = tuple(meet * x for x in wg.load_parts(dA)), Y
        to_k = tuple(meet * x for x in wg.load_parts(dA_T)), X
        return A_T, add(sums, to_r, to_k, c, mask)

    A_T, sums = lax.fori_loop(0, wg.plan.levels, level, (A_T, (sum_r, sum_k)))
    A_T = tile.where(masks.read(wg, transposed=True), A_T, 0.0)

    def beyond(left: bool) -> Operand:
        return Operand((between.at[wg.plan.levels],), transposed=not left)

    sides = [  # left or right, the border, what is said there and what is asked there
        (left, border, said_there, asked_there)
        for left, border, said_there, asked_there in (
            (True, i, said_left, asked_left),
            (False, i + 1, said_right, asked_right),
        )
        if said_there is not None or asked_there is not None
    ]
    for left, border, said_there, asked_there in sides:
        copies, to_r, to_k = [], None, None
        if said_there is not None:
            copies += block.state_copies(said_there, border, said)
            to_r = gradients, said
        if asked_there is not None:
            copies += block.state_copies(asked_there, border, asked)
            to_k = values, asked
        block.fill(copies)
        c = tile.product_of_decays(wg, beyond(left), log_d)
        sums = add(sums, to_r, to_k, c, beyond(left))

    passing = [
        [block.state(x, border, part) for x, border in pair for part in range(parts)]
        for pair in (
            ((said_left, i), (asked_right, i + 1)),
            ((said_right, i + 1), (asked_left, i)),
        )
        if pair[0][0] is not None
    ]
    if passing:
        pairs = [(Operand(tuple(p[:parts])), Operand(tuple(p[parts:]))) for p in passing]
        through = _of_total(wg, pairs, working) * jnp.exp(tile.log_across(wg, log_d))
        room[...] = wg.load(room) + through

    # Put away before dv is summed up, which takes the registers: dk in the room of v.
    sum_r, sum_k = sums
    r_[...] = sum_r.astype(r_.dtype)
    v_[...] = sum_k.astype(v_.dtype)
    out = tile.add_products(
        wg, None, [(A_T, gradients.columns(*channels)) for channels in block.slices]
    )
    for left, border, _, asked_there in sides:
        if asked_there is None:
            continue
        block.fill(block.state_copies(asked_there, border, asked))
        c = tile.product_of_decays(wg, beyond(left), log_d)
        decayed = split(wg.load(k_) * c, parts)
        out = tile.add_products(
            wg, out, [(decayed, asked.rows(*channels).T) for channels in block.slices]
        )
    sum_w = wg.load(room)
    block.meet()
    k_[...] = block.exchange(wg, out, rooms).astype(k_.dtype)
    room[...] = sum_w * wg.load_sum(log_d)  # d log d / d logit = log d
    block.write(i, (r_, dr), (v_, dk), (k_, dv), (room, dw))


def _of_total(wg: Warpgroup, passing: list[tuple[Operand, Operand]], working: Operand) -> Array:
    """The gradient of the product of a tile's decays, in each row: states decay as they pass.

    passing: what goes one way and the gradient that comes the other, in main memory.
    """
    sums, seen = [], 0
    for first in wg.plan.state_blocks:
        products = [
            wg.load_sum(said.rows(first, TILE)) * wg.load_sum(asked.rows(first, TILE))
            for said, asked in passing
        ]
        working.store(functools.reduce(jnp.add, products))
        sums.append(wg.product((masks.rows_from(wg, seen - first),), working))
        seen = first + TILE
    return functools.reduce(jnp.add, sums)
