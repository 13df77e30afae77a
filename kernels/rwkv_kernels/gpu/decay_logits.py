"""The Hopper kernel for `rwkv_kernels.decay_logits`: a thin product and its bias, in float32.

What it gives is twenty times what it reads, and so all its time.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, BFloat16, Float32

from rwkv_kernels.gpu import stream, tokens
from rwkv_kernels.gpu.call import Block, kernel_call
from rwkv_kernels.gpu.plan import TILE, Plan
from rwkv_kernels.gpu.tiling import Tiling
from rwkv_kernels.gpu.warpgroup import Operand, Warpgroup

CHANNELS = TILE  # that a block works on
_BLOCKS = 5  # that fit on a multiprocessor


def forward(
    z: BFloat16[Array, "M R"],
    up: BFloat16[Array, "R D"],
    bias: Float32[Array, "D"],
    *,
    interpret=None,
) -> Float32[Array, "M D"]:
    """bias + z up."""
    (M, R), D = z.shape, up.shape[1]
    plan = Plan(M, CHANNELS, causal=False, tiling=Tiling())
    wg = Warpgroup(plan, CHANNELS, 1, interpret)
    of_z = wg.tokens(R, z.dtype)
    return kernel_call(
        functools.partial(_kernel, wg), wg, {"z": z[None], "up": up, "bias": bias},
        {"w": jax.ShapeDtypeStruct((1, M, D), jnp.float32)},
        {"z_": of_z, "up_": wg.operand(CHANNELS, rows=R), "w_": wg.tokens(CHANNELS, jnp.float32)},
        grid=stream.grid(plan.tiles, D // CHANNELS, _BLOCKS), copies=len(of_z),
        name="decay_logits",
    )["w"][0]  # fmt: skip


def _kernel(wg: Warpgroup, block: Block, *, z, up, bias, w, z_, up_, w_) -> None:
    z_, up_, w_ = block.own((z_, up_, w_))
    here, _ = block.by_rows()
    channels = pl.ds(here.channel, CHANNELS)
    here.start_state([(up.at[:, channels], up_)], 0)
    row = wg.load_row(bias.at[channels])

    def work(block: Block, i: Array, z: Array, carry: tuple[()]) -> tuple[()]:
        found = wg.add_product(row, z, Operand(up_))
        block.wait_for_writes()  # of the tokens before
        tokens.write(wg, w_, found)
        block.write(i, (w_, w))
        return carry

    here.wait_for_state(0)
    stream.over_tokens(
        block, lambda block, i: block.columns(z, i, z_), lambda: tokens.load(wg, z_), work, ()
    )
    block.wait_for_writes()
