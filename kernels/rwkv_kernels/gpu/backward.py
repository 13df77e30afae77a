"""The backward kernel: gradients of r, k, v, w and u, a tile of a head in each block of the grid.

Nothing but the inputs is read, and the states at the tile's borders. Of the scores A only those
transposed are made, for dv = A^T g; the gradient dA = g v^T is made both ways, since a product
takes its left operand from registers as it lies there.
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
from rwkv_kernels.gpu.tile import Split
from rwkv_kernels.gpu.warpgroup import BFLOAT16, Transposed, Warpgroup


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
    """Gradients dr, dk, dv (bfloat16), dw (float32), and du by sequence and tile, [B, tiles, C].

    g: the gradient of y, bfloat16 like r, k and v; w, u float32.
    """
    wg = Warpgroup(plan, interpret)
    B, _, C = r.shape
    given = [x for x in borders if x is not None]
    scratch = {
        "tokens": [wg.tokens(BFLOAT16) for _ in range(3)],
        "sums": [wg.tokens(jnp.float32) for _ in range(3)],
        "log_d": [wg.operand, wg.operand],
        "operands": [wg.operand for _ in range(4)],
        "states": [wg.state for _ in given],
    }

    inputs = {"r": r, "k": k, "v": v, "w": w, "u": u, "g": g, **borders._asdict()}
    outputs = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype)
        for name, x in zip(("dr", "dk", "dv", "dw"), (r, k, v, w), strict=True)
    }
    outputs["du"] = jax.ShapeDtypeStruct((B, plan.tiles, C), jnp.float32)
    return kernel_call(
        functools.partial(_kernel, wg), wg, inputs, outputs, scratch,
        grid=(B, u.shape[0], plan.tiles), copies=4 + len(given), name="wkv6_backward",
    )  # fmt: skip


def _kernel(
    wg: Warpgroup, block: Block, *, r, k, v, w, u, g,
    said_left, asked_left, said_right, asked_right,
    dr, dk, dv, dw, du, tokens, sums, log_d, operands, states,
) -> None:  # fmt: skip
    borders = Borders(said_left, asked_left, said_right, asked_right)
    r_, k_, other = tokens
    dr_, dk_, dw_ = sums
    values, gradients, X, Y = operands
    log_d, working = Split(*log_d), Split(X, Y)
    i = block.tile

    # `other` takes in v, then g; dw_ takes in w.
    space = iter(states)
    here = Borders(*(None if x is None else next(space) for x in borders))
    sources = [
        (x, i + right, state)
        for x, right, state in zip(borders, (0, 0, 1, 1), here, strict=True)
        if x is not None
    ]
    block.fill(i, [(r, r_), (k, k_), (v, other), (w, dw_)], sources)
    log_d.store(tile.log_decay(wg, dw_, block.tokens_in(i)))
    tile.put(values, wg.load(other))
    block.fill(i, [(g, other)])
    tile.put(gradients, wg.load(other))

    def to_registers(operand) -> Array:
        return wg.load(operand).astype(BFLOAT16)

    dA = wg.product((to_registers(gradients), Transposed(values))).astype(BFLOAT16)
    dA_T = wg.product((to_registers(values), Transposed(gradients))).astype(BFLOAT16)
    none = jnp.zeros((TILE, TILE), BFLOAT16)

    # Each token with itself: y_t = (r_t . u . k_t) v_t.
    bonus = wg.load_row(u.at[block.head])
    tile.put(X, wg.load(r_))
    tile.put(Y, wg.load(k_))
    A_T = tile.own_scores(wg, wg.load(k_), bonus, X)
    own = jnp.where(masks.same(wg), dA, none)
    own_k = wg.product((own, Y))
    dr_[...] = own_k * bonus
    dk_[...] = wg.product((own, X)) * bonus
    working.store(own_k * wg.load(r_))
    dw_[...] = working.summed_by(wg, masks.rows_from(wg))
    block.write_row(i, dw_, du)
    dw_[...] = jnp.zeros((TILE, wg.plan.head_size), jnp.float32)

    def add(to_r, to_k, c: Array, mask: Array) -> None:
        """Adds to dr, dk and d log d what comes through r c and k c, c a product of decays.

        to_r, to_k: give the pairs whose products are the gradients of r c and k c, when they are
        wanted and not before, for want of registers; or None. mask: which log decays (row) are in
        the log of which token's c (column).
        """
        parts = []
        for pair, total, x in ((to_r, dr_, r_), (to_k, dk_, k_)):
            if pair is None:
                continue
            part = wg.product(pair()) * c
            total[...] = wg.load(total) + part
            parts.append(part * wg.load(x))
        working.store(functools.reduce(jnp.add, parts))
        dw_[...] = wg.load(dw_) + working.summed_by(wg, mask)

    def level(bit, A_T):
        m = 1 << bit
        c = tile.to_midpoint(wg, log_d, m)
        tile.put(X, wg.load(r_) * c)
        keys = tile.put(Y, wg.load(k_) * c)
        met = wg.product((keys, Transposed(X))).astype(BFLOAT16)
        A_T = jnp.where(masks.meet(wg, m, transposed=True), met, A_T)

        def to_r():
            return jnp.where(masks.meet(wg, m), dA, none), Y

        def to_k():
            return jnp.where(masks.meet(wg, m, transposed=True), dA_T, none), X

        add(to_r, to_k, c, masks.decays_to_midpoint(wg, m, transposed=True))
        return A_T

    A_T = lax.fori_loop(0, wg.plan.levels, level, A_T)
    out = wg.product((A_T, gradients))

    def from_border(left: bool, said, asked, out):
        """Adds what a state says to the tile, and what is asked of the tile; gives out with it."""
        c = tile.to_edge(wg, log_d, left=left)
        if asked is not None:
            out += wg.product(((wg.load(k_) * c).astype(BFLOAT16), Transposed(asked)))
        add(
            None if said is None else lambda: (to_registers(gradients), said),
            None if asked is None else lambda: (to_registers(values), asked),
            c,
            masks.decays_to_edge(wg, left=left, transposed=True),
        )
        return out

    if here.said_left is not None:
        out = from_border(True, here.said_left, here.asked_left, out)
    if here.asked_right is not None:
        out = from_border(False, here.said_right, here.asked_right, out)
    other[...] = out.astype(other.dtype)
    passing = [
        (said, asked)
        for said, asked in ((here.said_left, here.asked_right), (here.said_right, here.asked_left))
        if said is not None
    ]
    if passing:
        through = _of_total(wg, passing, working) * tile.across(wg, log_d)
        dw_[...] = wg.load(dw_) + through

    r_[...] = wg.load(dr_).astype(r_.dtype)
    k_[...] = wg.load(dk_).astype(k_.dtype)
    dw_[...] = wg.load(dw_) * log_d.load(wg)  # d log d / d logit = log d
    block.write(i, (r_, dr), (k_, dk), (other, dv), (dw_, dw))


def _of_total(wg: Warpgroup, passing, working: Split) -> Array:
    """The gradient of the product of a tile's decays, in each row: states decay as they pass."""
    sums, seen = [], 0
    for first in wg.plan.state_blocks:
        rows = pl.ds(first, TILE)
        products = [wg.load(said.at[rows]) * wg.load(asked.at[rows]) for said, asked in passing]
        working.store(functools.reduce(jnp.add, products))
        sums.append(working.summed_by(wg, masks.rows_from(wg, seen - first)))
        seen = first + TILE
    return functools.reduce(jnp.add, sums)
