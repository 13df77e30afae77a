"""The backward kernel: gradients of r, k, v, w and u, a tile of a head in each block of the grid.

Nothing but the inputs is read, and the states at the tile's borders. Of the scores A only those
transposed are made, for dv = A^T g; the gradient dA = g v^T is made both ways, since a product
takes its left operand from registers as it lies there.

The gradients of r, k and w of a channel need that channel of r, k and w, and dA. So warpgroups
share a head's channels. They meet when v and g are there, when dA is, and for dv, which sums over
channels; the levels are each one's own. What is added up lies in shared memory: a product's sums
take up to 40 of a thread's 255 registers, and several are held at once.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from rwkv_kernels.gpu import masks, tile
from rwkv_kernels.gpu.call import Block, kernel_call
from rwkv_kernels.gpu.plan import TILE, Plan
from rwkv_kernels.gpu.warpgroup import Operand, Warpgroup, rounded


class Borders(NamedTuple):
    """States [B, H, tiles + 1, N, N] at all borders; None is nothing.

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
    """dr, dk, dv (bfloat16) and dw (float32), and du by sequence and tile, float32 [B, tiles, C].

    g: the gradient of y, bfloat16 like r, k and v; w, u float32.
    """
    B, _, C = r.shape
    N = plan.head_size
    wg = Warpgroup(plan, plan.widths("backward"), interpret)
    any_state = any(x is not None for x in borders)

    def own(width: int):
        return {
            "r_": wg.tokens(width, r.dtype),
            "k_": wg.tokens(width, k.dtype),
            "v_": wg.tokens(width, v.dtype),
            "g_": wg.tokens(width, g.dtype),
            "log_d": wg.operand(width, parts=2),
            "dr_": wg.tokens(width, jnp.float32),
            "dk_": wg.tokens(width, jnp.float32),
            "A_T": wg.operand(TILE),
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
        "rooms": [wg.tokens(width, jnp.float32) for width in wg.widths],
    }
    inputs = {"r": r, "k": k, "v": v, "w": w, "u": u, "g": g, **borders._asdict()}
    inputs["numbers"] = jnp.arange(TILE, dtype=jnp.int32)
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
    wg: Warpgroup, block: Block, *, r, k, v, w, u, g, numbers,
    said_left, asked_left, said_right, asked_right,
    dr, dk, dv, dw, du, r_, k_, v_, g_, dr_, dk_, A_T, log_d, X, Y, said, asked,
    values, gradients, dA, dA_T, bits, rooms,
) -> None:  # fmt: skip
    wg = wg.reading(numbers)
    i = lax.axis_index("part")
    A_T, log_d, X, Y, values, gradients, dA, dA_T, bits = (
        Operand(tuple(x)) for x in (A_T, log_d, X, Y, values, gradients, dA, dA_T, bits)
    )
    said, asked = (None if x is None else Operand(tuple(x)) for x in (said, asked))
    # What is summed over tokens is held in 16 bits, in the room of X and Y.
    working = Operand((*X.parts, *Y.parts))
    room = rooms[block.index]  # for w, then for d log d, then for what others have for dv, for dw

    sources = ((r, r_), (k, k_), (w, room), (v, v_), (g, g_))
    block.fill([(block.tokens(x, i), to) for x, to in sources])
    log_d.store(tile.log_decay(wg, room, block.tokens_in(i)))
    for staged, operand in ((v_, values), (g_, gradients)):
        operand.columns(block.first, block.width).store(wg.load(staged))
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
    A_T.store(tile.own_scores(wg, wg.load(k_), bonus, X))
    own = tile.where(masks.same(wg), wg.load_raw(dA))
    own_k = wg.product(own, Y)
    dr_[...] = own_k * bonus
    dk_[...] = wg.product(own, X) * bonus
    working.store(own_k * wg.load(r_))
    room[...] = wg.product((masks.rows_from(wg),), working)
    block.write_row(i, room, du)
    room[...] = wg.zeros(block.width)

    def add(to_r, to_k, c: Array, mask: Array) -> None:
        """Adds to dr, dk and d log d what comes through r c and k c, c a product of decays.

        to_r, to_k: the pairs whose products are the gradients of r c and k c, or None. mask: which
        log decays (row) are in the log of which token's c (column).
        """
        of_log = []
        for pair, total, x in ((to_r, dr_, r_), (to_k, dk_, k_)):
            if pair is None:
                continue
            part = wg.product(*pair) * c
            total[...] = wg.load(total) + part
            of_log.append(part * wg.load(x))
        working.store(functools.reduce(jnp.add, of_log))
        room[...] = wg.load(room) + wg.product((mask,), working)

    def level(bit, _) -> None:
        m = 1 << bit
        c = tile.product_of_decays(wg, (masks.decays_to_midpoint(wg, m),), log_d)
        X.store(wg.load(r_) * c)
        keys = Y.store(wg.load(k_) * c)
        (met,) = rounded(wg.product(keys, X.T))
        meet = masks.equal(wg.load_raw(bits), bit)
        A_T.store((wg.load_raw(A_T) + meet * met,))
        to_r = (meet * wg.load_raw(dA),), Y
        to_k = (meet * wg.load_raw(dA_T),), X
        add(to_r, to_k, c, masks.decays_to_midpoint(wg, m, transposed=True))

    lax.fori_loop(0, wg.plan.levels, level, None)

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
            copies.append((block.state(said_there, border), *said.parts))
            to_r = gradients, said
        if asked_there is not None:
            copies.append((block.state(asked_there, border), *asked.parts))
            to_k = values, asked
        block.fill(copies)
        c = tile.product_of_decays(wg, (masks.decays_to_edge(wg, left=left),), log_d)
        add(to_r, to_k, c, masks.decays_to_edge(wg, left=left, transposed=True))

    passing = [
        [block.state(x, border) for x, border in pair]
        for pair in (
            ((said_left, i), (asked_right, i + 1)),
            ((said_right, i + 1), (asked_left, i)),
        )
        if pair[0][0] is not None
    ]
    if passing:
        through = _of_total(wg, passing, working) * jnp.exp(tile.log_across(wg, log_d))
        room[...] = wg.load(room) + through

    # dk in the room of v: dv still needs k.
    r_[...] = wg.load(dr_).astype(r_.dtype)
    v_[...] = wg.load(dk_).astype(v_.dtype)
    read = tile.where(masks.read(wg, transposed=True), wg.load_raw(A_T))
    out = tile.add_products(
        wg, None, [(read, gradients.columns(*channels)) for channels in block.slices]
    )
    for left, border, _, asked_there in sides:
        if asked_there is None:
            continue
        block.fill([(block.state(asked_there, border), *asked.parts)])
        c = tile.product_of_decays(wg, (masks.decays_to_edge(wg, left=left),), log_d)
        decayed = rounded(wg.load(k_) * c)
        out = tile.add_products(
            wg, out, [(decayed, asked.rows(*channels).T) for channels in block.slices]
        )
    sum_w = wg.load(room)
    block.meet()
    k_[...] = block.exchange(wg, out, rooms).astype(k_.dtype)
    room[...] = sum_w * wg.load_sum(log_d)  # d log d / d logit = log d
    block.write(i, (r_, dr), (v_, dk), (k_, dv), (room, dw))


def _of_total(wg: Warpgroup, passing: list[list], working: Operand) -> Array:
    """The gradient of the product of a tile's decays, in each row: states decay as they pass.

    passing: what goes one way and the gradient that comes the other, in main memory.
    """
    sums, seen = [], 0
    for first in wg.plan.state_blocks:
        rows = pl.ds(first, TILE)
        products = [wg.load(said.at[rows]) * wg.load(asked.at[rows]) for said, asked in passing]
        working.store(functools.reduce(jnp.add, products))
        sums.append(wg.product((masks.rows_from(wg, seen - first),), working))
        seen = first + TILE
    return functools.reduce(jnp.add, sums)
