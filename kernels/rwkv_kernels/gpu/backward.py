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
from jax.experimental.pallas import mosaic_gpu as plgpu
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
            "A_T": wg.operand(TILE),
            "nought": plgpu.SMEM((1,), jnp.int32),
        }

    shared = {
        "values": wg.operand(N),
        "gradients": wg.operand(N),
        "dA": wg.operand(TILE),
        "dA_T": wg.operand(TILE),
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
    dr, dk, dv, dw, du, r_, k_, v_, g_, log_d, X, Y, said, asked, A_T, nought,
    values, gradients, dA, dA_T, rooms,
) -> None:  # fmt: skip
    parts, i = wg.plan.parts, lax.axis_index("part")
    log_d, X, Y, A_T, values, gradients, dA, dA_T = (
        Operand(tuple(x)) for x in (log_d, X, Y, A_T, values, gradients, dA, dA_T)
    )
    # What is summed over tokens is held in 16 bits, in the room of X and Y.
    working = Operand((X.parts + Y.parts)[:2])
    room = rooms[block.index]  # for w, then for what other warpgroups have for dv, then for dw

    nought[0] = jnp.int32(0)
    sources = ((r, r_), (k, k_), (w, room), (v, v_), (g, g_))
    block.fill([(block.tokens(x, i), to) for x, to in sources if to is not None])
    log_d.store(tile.log_decay(wg, room, block.tokens_in(i)))
    for array, staged, operand in ((v, v_, values), (g, g_, gradients)):
        if staged is None:
            staged = room
            block.fill([(block.tokens(array, i), room)])
        operand.columns(block.first, block.width).store(wg.load(staged))
    block.meet()
    if block.index == 0:
        dA.store(wg.product(gradients, values.T))
    if block.index == len(wg.widths) - 1:
        dA_T.store(wg.product(values, gradients.T))
    block.meet()

    # Each token with itself: y_t = (r_t . u . k_t) v_t.
    bonus = wg.load_row(u.at[block.head, block.own])
    X.store(wg.load(r_))
    Y.store(wg.load(k_))
    A_T.store(tile.own_scores(wg, wg.load(k_), bonus, X))
    own = tile.where(masks.same(wg), wg.load_parts(dA), 0.0)
    own_k = wg.product(own, Y)
    sum_r = own_k * bonus
    sum_k = wg.product(own, X) * bonus
    working.store(own_k * wg.load(r_))
    room[...] = wg.product((masks.rows_from(wg),), working)
    block.write_row(i, room, du)

    def add(sums, to_r, to_k, c: Array, mask: Array):
        """Adds to dr, dk and d log d what comes through r c and k c, c a product of decays.

        to_r, to_k: the pairs whose products are the gradients of r c and k c, or None. mask: which
        log decays (row) are in the log of which token's c (column).
        """
        sum_r, sum_k, sum_w = sums
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
        return sum_r, sum_k, sum_w + wg.product((mask,), working)

    def level(bit, sums):
        m = 1 << bit
        now = wg.forgetful(nought)
        c = tile.to_midpoint(now, log_d, m)
        X.store(wg.load(r_) * c)
        keys = Y.store(wg.load(k_) * c)
        met = split(wg.product(keys, X.T), parts)
        A_T.store(tile.where(masks.meet(now, m, transposed=True), met, wg.load_parts(A_T)))
        to_r = tile.where(masks.meet(now, m), wg.load_parts(dA), 0.0), Y
        to_k = tile.where(masks.meet(now, m, transposed=True), wg.load_parts(dA_T), 0.0), X
        mask = masks.decays_to_midpoint(now, m, transposed=True)
        return add(sums, to_r, to_k, c, mask)

    sums = sum_r, sum_k, wg.zeros(block.width)
    sums = lax.fori_loop(0, wg.plan.levels, level, sums)
    out = tile.add_products(
        wg, None, [(wg.load_parts(A_T), gradients.columns(*channels)) for channels in block.slices]
    )

    def from_border(left: bool, border, said_there, asked_there, sums, out):
        """Adds what a state says to the tile, and what is asked of the tile."""
        now = wg.forgetful(nought)
        c = tile.to_edge(now, log_d, left=left)
        copies, to_r, to_k = [], None, None
        if said_there is not None:
            here = Operand(tuple(said))
            copies += block.state_copies(said_there, border, here)
            to_r = gradients, here
        if asked_there is not None:
            here = Operand(tuple(asked))
            copies += block.state_copies(asked_there, border, here)
            to_k = values, here
        block.fill(copies)
        if asked_there is not None:
            decayed = split(wg.load(k_) * c, parts)
            out = tile.add_products(
                wg, out, [(decayed, here.rows(*channels).T) for channels in block.slices]
            )
        mask = masks.decays_to_edge(wg.forgetful(nought), left=left, transposed=True)
        return add(sums, to_r, to_k, c, mask), out

    if said_left is not None:
        sums, out = from_border(True, i, said_left, asked_left, sums, out)
    if asked_right is not None:
        sums, out = from_border(False, i + 1, said_right, asked_right, sums, out)
    sum_r, sum_k, sum_w = sums

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
        sum_w += _of_total(wg, pairs, working) * jnp.exp(tile.log_across(wg, log_d))

    r_[...] = sum_r.astype(r_.dtype)
    k_[...] = sum_k.astype(k_.dtype)
    staged = room if v_ is None else v_
    staged[...] = block.exchange(wg, out, rooms).astype(staged.dtype)
    block.write(i, (r_, dr), (k_, dk), (staged, dv))
    room[...] = sum_w * wg.load_sum(log_d)  # d log d / d logit = log d
    block.write(i, (room, dw))


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
