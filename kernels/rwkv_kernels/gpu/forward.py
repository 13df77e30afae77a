"""The forward kernel: y, a tile of a head of a sequence in each block of the grid."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from rwkv_kernels.gpu import masks, tile
from rwkv_kernels.gpu.call import Block, kernel_call
from rwkv_kernels.gpu.plan import Plan
from rwkv_kernels.gpu.warpgroup import Operand, Warpgroup, rounded


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
    wg = Warpgroup(plan, plan.widths("forward"), interpret)

    def own(width: int):
        return {
            "r_": wg.tokens(width, r.dtype),
            "k_": wg.tokens(width, k.dtype),
            "v_": wg.tokens(width, v.dtype),
            "log_d": wg.operand(width, parts=2),
            "keys": wg.operand(width),
            "state": wg.operand(width, rows=N) if plan.stateful else None,
        }

    shared = {
        "values": wg.operand(N),
        "rooms": [wg.tokens(width, jnp.float32) for width in wg.widths],
    }
    inputs = {"r": r, "k": k, "v": v, "w": w, "u": u, "left": from_left, "right": from_right}
    return kernel_call(
        functools.partial(_kernel, wg), wg, inputs,
        {"y": jax.ShapeDtypeStruct(v.shape, v.dtype)}, own, shared,
        grid=(r.shape[0], u.shape[0], plan.tiles), copies=4, name="wkv6_forward",
    )["y"]  # fmt: skip


def _kernel(
    wg: Warpgroup, block: Block, *, r, k, v, w, u, left, right, y,
    r_, k_, v_, log_d, keys, state, values, rooms,
) -> None:  # fmt: skip
    log_d, keys, values = (Operand(tuple(x)) for x in (log_d, keys, values))
    room = rooms[block.index]  # for w, then for what other warpgroups have for this one's channels
    i = lax.axis_index("part")

    block.fill([(block.tokens(x, i), to) for x, to in ((r, r_), (k, k_), (v, v_), (w, room))])
    log_d.store(tile.log_decay(wg, room, block.tokens_in(i)))
    values.columns(block.first, block.width).store(wg.load(v_))
    bonus = wg.load_row(u.at[block.head, block.own])
    A = tile.scores(wg, r_, k_, bonus, log_d, keys)
    block.meet()
    out = tile.add_products(wg, None, [(A, values.columns(*s)) for s in block.slices])
    for at_right, array in enumerate((left, right)):
        if array is None:
            continue
        here = Operand(tuple(state))
        block.fill([(block.state(array, i + at_right), *here.parts)])
        mask = masks.decays_to_edge(wg, left=not at_right)
        decayed = wg.load(r_) * tile.product_of_decays(wg, (mask,), log_d)
        out = tile.add_products(
            wg, out, [(rounded(decayed), here.rows(*s).T) for s in block.slices]
        )
    v_[...] = block.exchange(wg, out, rooms).astype(v_.dtype)
    block.write(i, (v_, y))
