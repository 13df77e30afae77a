"""The kernel that goes once over a sequence for the states at the borders of its tiles.

A state is held as value x key, so that a decay scales its columns, which are a tile's columns. It
goes on in float32; tiles read it in bfloat16, as their products do.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, BFloat16, Float, Float32

from rwkv_kernels.gpu import tile
from rwkv_kernels.gpu.call import Block, kernel_call
from rwkv_kernels.gpu.plan import TILE, Plan
from rwkv_kernels.gpu.tile import Split
from rwkv_kernels.gpu.warpgroup import BFLOAT16, Transposed, Warpgroup


def states(
    plan: Plan,
    values: Float[Array, "B T C"],
    keys: Float[Array, "B T C"],
    w: Float[Array, "B T C"],
    initial: Float32[Array, "B H N N"] | None,
    *,
    leftwards: bool,
    interpret=None,
) -> tuple[BFloat16[Array, "B H borders N N"], Float32[Array, "B H N N"]]:
    """The sum of values^T keys, decayed on the way, of the tokens to one side of each border.

    Rightwards of those to its left, leftwards of those to its right. With r for the keys and the
    gradient of y for the values, the gradients of the states that go the other way.

    initial: the state at the border where the sweep begins, value x key; None is zeros.

    Returns:
      The states at the borders (the first is to the left of all tiles), and that at which the sweep
      ends once more, in float32.
    """
    wg = Warpgroup(plan, interpret)
    (B, _, C), N = keys.shape, plan.head_size
    scratch = {
        "tokens": [wg.tokens(BFLOAT16), wg.tokens(jnp.float32)],
        "log_d": [wg.operand, wg.operand],
        "operands": [wg.operand, wg.operand],
        "state": plgpu.SMEM((N, N), jnp.float32),
        "rounded": plgpu.SMEM((N, N), BFLOAT16),
    }

    results = kernel_call(
        functools.partial(_kernel, wg, leftwards), wg,
        {"values": values, "keys": keys, "w": w, "initial": initial},
        {
            "borders": jax.ShapeDtypeStruct((B, C // N, plan.tiles + 1, N, N), BFLOAT16),
            "final": jax.ShapeDtypeStruct((B, C // N, N, N), jnp.float32),
        },
        scratch, grid=(B, C // N), copies=2, name="wkv6_states",
    )  # fmt: skip
    return results["borders"], results["final"]


def _kernel(
    wg: Warpgroup, leftwards: bool, block: Block, *, values, keys, w, initial,
    borders, final, tokens, log_d, operands, state, rounded,
) -> None:  # fmt: skip
    staged, w_ = tokens
    log_d = Split(*log_d)
    tiles = wg.plan.tiles
    blocks = [pl.ds(first, TILE) for first in wg.plan.state_blocks]

    def keep(new) -> None:
        for rows, x in zip(blocks, new, strict=True):
            state[rows] = x
            rounded[rows] = x.astype(BFLOAT16)

    def over_tile(step, _):
        i = tiles - 1 - step if leftwards else step
        block.write_state(i + 1 if leftwards else i, rounded, borders)
        block.fill(i, [(values, staged), (w, w_)])
        log_d.store(tile.log_decay(wg, w_, block.tokens_in(i)))
        tile.put(operands[0], wg.load(staged))
        block.fill(i, [(keys, staged)])
        tile.put(operands[1], wg.load(staged) * tile.to_edge(wg, log_d, left=leftwards))
        total = tile.across(wg, log_d)
        # All blocks before any is kept: they overlap.
        keep(
            [
                wg.load(state.at[rows]) * total
                + wg.product((Transposed(operands[0].at[:, rows]), operands[1]))
                for rows in blocks
            ]
        )

    if initial is not None:
        block.fill(0, states=[(initial, None, state)])
    zeros = jnp.zeros((TILE, wg.plan.head_size), jnp.float32)
    keep([zeros if initial is None else wg.load(state.at[rows]) for rows in blocks])
    lax.fori_loop(0, tiles, over_tile, None)
    block.write_state(0 if leftwards else tiles, rounded, borders)
    block.write_state(None, state, final)
