"""The forward kernel: y, a tile of a head of a sequence by each warpgroup.

Sequences of up to 256 tokens are worked on by one block, whose warpgroups read each other's shared
memory; what comes from beyond a block comes as states.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, BFloat16, Float, Float16

from rwkv_kernels.gpu import masks, sixteens, tile, warp
from rwkv_kernels.gpu.call import Block, kernel_call
from rwkv_kernels.gpu.plan import Plan
from rwkv_kernels.gpu.warpgroup import BFLOAT16, FLOAT16, Operand, Warpgroup

_NEAR, _FAR = 101, 102  # for `Block.own`: parts of the kernel


def forward(
    plan: Plan,
    r: Float[Array, "B T C"],
    k: Float[Array, "B T C"],
    v: Float[Array, "B T C"],
    w: Float[Array, "B T C"],
    u: Float[Array, "H N"],
    states: BFloat16[Array, "flows B H borders N N"] | None,
    *,
    interpret=None,
) -> Float[Array, "B T C"]:
    """y; r, k, v bfloat16, w and u float32. states: of what comes from beyond each tile."""
    N = plan.head_size
    wg = Warpgroup(plan, N, plan.warpgroups("forward"), interpret)
    beyond = wg.operand(N, rows=N if plan.reads_states("forward") else None)
    scratch = {
        "of_r": wg.tokens(N, r.dtype),
        # In turn: tokens as they come, and what products read: log d and decayed keys; keys decayed
        # for tiles further off, or a state, and values.
        "w_or_near": wg.in_turn(
            (wg.tokens(N, jnp.float32),), (wg.operand(N, dtype=FLOAT16), wg.operand(N))
        ),
        "k_v_or_far": wg.in_turn(
            (wg.tokens(N, k.dtype), wg.tokens(N, v.dtype)), (beyond, wg.operand(N))
        ),
    }
    # The log of all of a tile's decays, by which others go past it.
    scratch["totals"] = wg.numbers(N) if wg.warpgroups > 2 else None
    inputs = {"r": r, "k": k, "v": v, "w": w, "u": u, "states": states}
    inputs |= {"of_met": masks.meetings()[None], "of_sixteen": masks.meetings(warp.SIXTEEN)}
    return kernel_call(
        functools.partial(_kernel, wg), wg, inputs,
        {"y": jax.ShapeDtypeStruct(v.shape, v.dtype)}, scratch,
        grid=(r.shape[0], u.shape[0], plan.tiles), copies=4, name="wkv6_forward",
    )["y"]  # fmt: skip


def _kernel(
    wg: Warpgroup, block: Block, *, r, k, v, w, u, states, of_met, of_sixteen, y,
    of_r, w_or_near, k_v_or_far, totals,
) -> None:  # fmt: skip
    (of_w, of_near), (of_k_v, of_far) = w_or_near, k_v_or_far
    r_, (w_,), (k_, v_) = (block.own(x) for x in (of_r, of_w, of_k_v))
    log_d, _, beyond, values = (Operand(block.own(x)) for x in (*of_near, *of_far))
    i = block.part

    block.fill([(block.tokens(x, i), to) for x, to in ((r, r_), (k, k_), (v, v_), (w, w_))])
    log2_d = tile.log2_decay(wg, w_, block.tokens_in(i)).astype(FLOAT16)
    v_came = wg.load_raw(v_)
    block.wait_for_all()
    wg.write(values, v_came)
    wg.write(log_d, log2_d)
    r_came, k_came = wg.load_raw(r_), wg.load_raw(k_)
    with_itself = tile.with_itself(wg, r_came, k_came, u.at[block.head])
    A = sixteens.scores(wg, r_came, k_came, log2_d, with_itself, wg.load_raw(of_sixteen))
    block.wait_for_all()
    if totals is not None:
        all_of_it = wg.product(tile.scaled(masks.rows_from(wg)), log_d)
        block.own(totals)[...] = warp.first_row(wg, all_of_it)
    A = warp.block_diagonal(wg, A)
    if wg.plan.levels > warp.LEVELS:
        A = _levels_beyond_sixteen(wg, block, A, (of_r, of_k_v[0], *of_near), of_met)
    out = wg.product(A, values)
    if wg.warpgroups > 1:
        came = (of_r, of_k_v[0])
        out = _add_other_tiles(wg, block, out, came, of_near, of_far, of_met, totals)
    for flow in range(0 if states is None else states.shape[0]):
        block.fill([(block.state(states, flow, i + flow), beyond.ref)])
        met = wg.load_raw(block.only(of_met, anew=_NEAR + flow))
        mask = masks.decays_to_edge(met, 1 - flow)
        decayed = wg.load(r_) * tile.product_of_decays(wg, mask, log_d)
        out = wg.add_product(out, decayed.astype(BFLOAT16), beyond.T)
    wg.wait_for_readers()
    r_[...] = out.astype(r_.dtype)
    block.write(i, (r_, y))


def _levels_beyond_sixteen(
    wg: Warpgroup, block: Block, A: BFloat16[Array, "64 64"], rooms: Sequence, of_met
) -> BFloat16[Array, "64 64"]:
    """A with what tokens of a tile say to others than their sixteen.

    rooms: r and k as they come, log d, and one for decayed keys.
    """
    meetings = wg.load_raw(block.only(of_met))

    def level(bit, A):
        r_, k_, log_d, keys = block.own(rooms, anew=bit)
        mask = masks.decays_to_midpoint(wg, meetings, bit)
        c = tile.product_of_decays(wg, mask, Operand(log_d)).astype(BFLOAT16)
        wg.wait_for_readers()
        wg.store((Operand(keys), wg.load_raw(k_) * c))
        met = wg.product(wg.load_raw(r_) * c, Operand(keys).T).astype(BFLOAT16)
        return A + masks.of_bfloat16(masks.meet(wg, meetings, bit)) * met

    return lax.fori_loop(warp.LEVELS, block.levels, level, A)


def _add_other_tiles(
    wg: Warpgroup, block: Block, out: Float[Array, "64 n"], came: Sequence, of_near, of_far, of_met,
    totals,
) -> Float[Array, "64 n"]:  # fmt: skip
    """out with what the other tiles of the sequence say: one level or two more, whose halves are
    one tile or two.
    """
    index, tiles = block.index, wg.plan.tiles
    neighbour = index ^ 1

    def towards(left: Array, anew: int) -> Float16[Array, "64 64"]:
        return masks.decays_to_edge(wg.load_raw(block.only(of_met, anew=anew)), left)

    def leave(c: Float[Array, "64 n"], of_keys, anew: int) -> BFloat16[Array, "64 n"]:
        """The tile's r as they meet others; its keys for others to meet."""
        c = c.astype(BFLOAT16)
        r_, k_, keys = block.own((*came, of_keys), anew=anew)
        wg.write(Operand(keys), wg.load_raw(k_) * c)
        return wg.load_raw(r_) * c

    def add(
        out, other: Array, r_decayed: Array, of_keys, anew: int | Array
    ) -> Float[Array, "64 n"]:
        there = jnp.minimum(other, tiles - 1)
        keys, values = (Operand(block.of(there, x, anew=anew)) for x in (of_keys, of_far[1]))
        A = wg.product(r_decayed, keys.T).astype(BFLOAT16)
        if tiles == 3:  # one of four is none
            A = A * jnp.where(other < tiles, 1, 0).astype(BFLOAT16)
        return wg.add_product(out, A, values)

    wg.wait_for_readers()
    log_d = Operand(block.own(of_near[0], anew=_NEAR))
    c = tile.product_of_decays(wg, towards(index & 1, _NEAR), log_d)
    r_near = leave(c, of_near[1], _NEAR)
    block.wait_for_all()
    out = add(out, neighbour, r_near, of_near[1], _NEAR)
    if tiles == 2:
        return out
    # The outer two of four tiles have another one between them and the middle.
    outer = jnp.where((index == 0) | (index == 3), 1.0, 0.0)
    log_d = Operand(block.own(of_near[0], anew=_FAR))
    log_c = tile.log2_product(wg, towards(index >> 1, _FAR), log_d)
    between = wg.load_row(block.of(jnp.minimum(neighbour, tiles - 1), totals, anew=_FAR))
    r_far = leave(jnp.exp2(log_c + outer * between), of_far[0], _FAR)
    block.wait_for_all()
    first = 2 - (index & 2)
    # A loop, that the second one's scores wait for the first one's registers.
    return lax.fori_loop(0, 2, lambda i, out: add(out, first + i, r_far, of_far[0], i), out)
