"""The forward kernel: y of a tile of a head in each block of the grid.

Tokens beyond the tile come as states, whatever the sequence's length.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float, Float16, Float32

from rwkv_kernels.gpu import beside, masks, tile, tokens, warp, words
from rwkv_kernels.gpu.call import Block, kernel_call
from rwkv_kernels.gpu.float32 import levels
from rwkv_kernels.gpu.grid import Grid
from rwkv_kernels.gpu.plan import Plan
from rwkv_kernels.gpu.warpgroup import FLOAT16, Warpgroup

_STATES, _LAST = 101, 110  # for `Block.own`: parts of the kernel


def forward(
    plan: Plan,
    r: Float32[Array, "B T C"],
    k: Float32[Array, "B T C"],
    v: Float32[Array, "B T C"],
    w: Float32[Array, "B T C"],
    u: Float32[Array, "H N"],
    states: Sequence[BFloat16[Array, "flows B H borders N N"]] | None,
    *,
    interpret=None,
) -> Float32[Array, "B T C"]:
    """y. states: of what comes from beyond each tile, in words."""
    N = plan.head_size
    wg = Warpgroup(plan, N, interpret=interpret)
    flows = 0 if states is None else states[0].shape[0]
    came = wg.tokens(N, jnp.float32)
    operand, state = plan.words * (wg.operand(N),), plan.words * (wg.operand(N, rows=N),)
    scratch = {
        # In turn: tokens as they come, and as they are read; what works, and what goes.
        "of_r": came,
        "of_k": came,
        "of_v": wg.in_turn(came, operand),
        "of_w": wg.in_turn(came, plan.words * (wg.operand(N, dtype=FLOAT16),)),
        "work": wg.in_turn(operand, state if flows else (), came),
    }
    high, low = states or (None, None)
    inputs = {"r": r, "k": k, "v": v, "w": w, "u": u, "high": high, "low": low}
    inputs["meetings"] = masks.meetings(warp.SIXTEEN)[None]
    return kernel_call(
        functools.partial(_kernel, wg, flows), wg, inputs,
        {"y": jax.ShapeDtypeStruct(v.shape, v.dtype)}, scratch,
        grid=Grid(r.shape[0], u.shape[0], plan.tiles), copies=4 * len(came),
        state_copies=plan.words, name="wkv6_float32_forward",
    )["y"]  # fmt: skip


def _kernel(
    wg: Warpgroup, flows: int, block: Block, *, r, k, v, w, u, high, low, meetings, y,
    of_r, of_k, of_v, of_w, work,
) -> None:  # fmt: skip
    (v_came, v_words), (w_came, log_words) = of_v, of_w
    of_keys, of_state, of_y = work
    r_, k_, v_, w_ = block.own((of_r, of_k, v_came, w_came))
    i = block.part

    places = ((r, r_), (k, k_), (v, v_), (w, w_))
    block.start([copy for x, to in places for copy in block.tokens(x, i, to)])
    block.wait()
    came = tokens.load(wg, v_)
    log2_d = tile.log2_decay(wg, w_, block.tokens_in(i), jnp.float32)
    block.wait_for_all()
    words.write(wg, words.operands(block.own(v_words)), came)
    words.write(wg, words.operands(block.own(log_words)), log2_d)
    wg.store()

    def met(anew: int | Array) -> Float16[Array, "64 64"]:
        return beside.meetings(wg, wg.load_raw(block.only(meetings, anew=anew)))

    def load(anew: int | Array) -> tuple[levels.Tile, words.Words]:
        r, k, log_d, keys = block.own((of_r, of_k, log_words, of_keys), anew=anew)
        return levels.Tile(r, k, words.operands(log_d)), words.operands(keys)

    itself = levels.with_itself(wg, r_, k_, u.at[block.head])
    A = levels.scores(wg, block.levels, load, met, itself)
    (out,) = wg.sums_of_products(words.pairs(A, words.operands(block.own(v_words))))

    def add(flow: int, out: Float[Array, "64 n"]) -> Float[Array, "64 n"]:
        room = block.own(of_state, anew=_STATES + flow)
        states = (block.state(x, flow, i + flow) for x in (high, low))
        block.start_state(list(zip(states, room, strict=True)), flow)
        of, _ = load(_STATES + flow)
        mask = beside.to_edge(wg, wg.load_raw(block.only(meetings, anew=_STATES + flow)), 1 - flow)
        readers = levels.decayed(wg, of.r, mask, of.log_d)
        block.wait_for_state(flow)
        (out,) = wg.add_products([out], words.pairs(readers, words.turned(words.operands(room))))
        return out

    for flow in range(flows):
        wg.wait_for_readers()  # of the keys, or of the state before
        out = block.if_it_comes(flow, functools.partial(add, flow), out)
    block.wait_for_all()
    block = block.again(anew=_LAST)
    y_ = block.own(of_y, anew=_LAST)
    tokens.write(wg, y_, out)
    block.write(block.part, (y_, y))
    block.wait_for_writes()
