"""The forward kernel: y, a tile of a head of a sequence in each block of the grid."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from rwkv_kernels.gpu import masks, tile
from rwkv_kernels.gpu.call import Block, kernel_call
from rwkv_kernels.gpu.plan import Plan
from rwkv_kernels.gpu.warpgroup import BFLOAT16, FLOAT16, Operand, Warpgroup


def forward(
    plan: Plan,
    r: Float[Array, "B T C"],
    k: Float[Array, "B T C"],
    v: Float[Array, "B T C"],
    w: Float[Array, "B T C"],
    u: Float[Array, "H N"],
    from_left: Array | None,
    from_right: Array | None,
    *,
    interpret=None,
) -> Float[Array, "B T C"]:
    """y; r, k, v bfloat16, w and u float32.

    from_left, from_right: states [B, H, tiles + 1, N, N] of what comes from there; None
    is nothing.
    """
    N = plan.head_size
    wg = Warpgroup(plan, N, 1 + plan.paired, interpret)
    state = (wg.operand(N, rows=N),) if plan.stateful else ()
    scratch = {
        # In turn: w as it comes, and r and k as they are held; r and k as they come, and a state.
        "w_or_held": wg.in_turn((wg.tokens(N, jnp.float32),), (wg.operand(N), wg.operand(N))),
        "came_or_state": wg.in_turn((wg.tokens(N, r.dtype), wg.tokens(N, k.dtype)), state),
        "v_": wg.tokens(N, v.dtype),
        "log_d": wg.operand(N, dtype=FLOAT16),
        "keys_": wg.operand(N),
    }
    inputs = {"r": r, "k": k, "v": v, "w": w, "u": u, "left": from_left, "right": from_right}
    inputs["meetings"] = masks.meetings()
    return kernel_call(
        functools.partial(_kernel, wg), wg, inputs,
        {"y": jax.ShapeDtypeStruct(v.shape, v.dtype)}, scratch,
        grid=(r.shape[0], u.shape[0], plan.tiles), copies=4, name="wkv6_forward",
    )["y"]  # fmt: skip


def _kernel(
    wg: Warpgroup, block: Block, *, r, k, v, w, u, left, right, meetings, y,
    w_or_held, came_or_state, v_, log_d, keys_,
) -> None:  # fmt: skip
    (of_w, of_held), (of_came, of_state) = w_or_held, came_or_state
    (w_,), (r_, k_), state, v_ = (block.own(x) for x in (of_w, of_came, of_state, v_))
    held_r, held_k, log_d, keys = (Operand(block.own(x)) for x in (*of_held, log_d, keys_))
    i = block.part

    block.fill([(block.tokens(x, i), to) for x, to in ((r, r_), (k, k_), (v, v_), (w, w_))])
    log2_d = tile.log2_decay(wg, w_, block.tokens_in(i))
    block.wait_for_all()
    came = wg.load_raw(r_), wg.load_raw(k_)
    wg.store((log_d, log2_d), (held_r, came[0]), (held_k, came[1]))
    meetings = wg.load_raw(meetings)
    with_itself = tile.with_itself(wg, held_r, held_k, u.at[block.head])
    if wg.plan.tokens > 1:
        A = tile.scores(wg, held_r, held_k, log_d, keys, meetings, block.levels)
        wg.wait_for_readers()
    if wg.plan.paired:  # one level more, of which both tiles are the halves
        mask = masks.decays_to_other(meetings, block.index)
        c = tile.product_of_decays(wg, mask, log_d).astype(BFLOAT16)
        wg.write(keys, wg.load_raw(held_k.ref) * c)
        block.wait_for_all()
        other = Operand(block.others(keys_))
        A_of_other = wg.product(wg.load_raw(held_r.ref) * c, other.T).astype(BFLOAT16)
        block.wait_for_all()
    wg.store((keys, wg.load_raw(v_)))  # values in the room of the keys
    if wg.plan.paired:
        block.wait_for_all()
    out = []
    for part in wg.halves:
        values = keys.columns(*part)
        out.append(wg.spread(with_itself, 0, part[1]) * wg.load(values.ref))
        if wg.plan.tokens > 1:
            out[-1] = out[-1] + wg.product(A, values)
        if wg.plan.paired:
            out[-1] = out[-1] + wg.product(A_of_other, other.columns(*part))
    for at_right, array in enumerate((left, right)):
        if array is None:
            continue
        block.fill([(block.state(array, i + at_right), *state)])
        mask = masks.decays_to_edge(meetings, left=not at_right)
        decayed = wg.load(held_r.ref) * tile.product_of_decays(wg, mask, log_d)
        decayed = decayed.astype(BFLOAT16)
        for at, part in enumerate(wg.halves):
            out[at] = out[at] + wg.product(decayed, Operand(state[0].at[pl.ds(*part)]).T)
    wg.wait_for_readers()
    for part, x in zip(wg.halves, out, strict=True):
        r_.at[:, pl.ds(*part)][...] = x.astype(r_.dtype)
    block.write(i, (r_, y))
