"""The forward kernel: y, a tile of a head of a sequence in each block of the grid."""

import functools

import jax
from jaxtyping import Array, Float

from rwkv_kernels.gpu import tile
from rwkv_kernels.gpu.call import Block, kernel_call
from rwkv_kernels.gpu.plan import Plan
from rwkv_kernels.gpu.tile import Split
from rwkv_kernels.gpu.warpgroup import BFLOAT16, Transposed, Warpgroup


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

    from_left, from_right: states [B, H, tiles + 1, N, N] of what comes from there; None is nothing.
    """
    wg = Warpgroup(plan, interpret)
    scratch = {
        "tokens": [wg.tokens(x.dtype) for x in (r, k, v, w)],
        "log_d": [wg.operand, wg.operand],
        "operands": [wg.operand, wg.operand],
        "state": wg.state if plan.stateful else None,
    }

    inputs = {"r": r, "k": k, "v": v, "w": w, "u": u, "left": from_left, "right": from_right}
    return kernel_call(
        functools.partial(_kernel, wg), wg, inputs,
        {"y": jax.ShapeDtypeStruct(v.shape, v.dtype)}, scratch,
        grid=(r.shape[0], u.shape[0], plan.tiles), copies=4, name="wkv6_forward",
    )["y"]  # fmt: skip


def _kernel(
    wg: Warpgroup, block: Block, *, r, k, v, w, u, left, right,
    y, tokens, log_d, operands, state,
) -> None:  # fmt: skip
    r_, k_, v_, w_ = tokens
    values, keys = operands
    log_d = Split(*log_d)
    i = block.tile

    block.fill(i, [(r, r_), (k, k_), (v, v_), (w, w_)])
    log_d.store(tile.log_decay(wg, w_, block.tokens_in(i)))
    tile.put(values, wg.load(v_))
    bonus = wg.load_row(u.at[block.head])
    out = wg.product((tile.scores(wg, r_, k_, bonus, log_d, keys), values))
    for at_right, array in enumerate((left, right)):
        if array is None:
            continue
        block.fill(i, states=[(array, i + at_right, state)])
        decayed = wg.load(r_) * tile.to_edge(wg, log_d, left=not at_right)
        out += wg.product((decayed.astype(BFLOAT16), Transposed(state)))
    v_[...] = out.astype(v_.dtype)
    block.write(i, (v_, y))
