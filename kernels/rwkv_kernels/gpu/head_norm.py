"""The norm of each head's channels and its gate as Hopper kernels: each array crosses memory once.

A block works on a head's channels (`stream.py`). Tokens are [M, D], all of a batch's one after the
other.

With x a head's channels, z = (x - mean) / deviation and s = sigmoid(gate), y = (z scale + bias)
gate s. All is computed in float32, and what is not kept is computed again.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, BFloat16, Float32

from rwkv_kernels.gpu import stream, tokens, warp
from rwkv_kernels.gpu.call import Block, kernel_call
from rwkv_kernels.gpu.plan import Plan
from rwkv_kernels.gpu.tile import LOG2_E
from rwkv_kernels.gpu.tiling import Tiling
from rwkv_kernels.gpu.warpgroup import Warpgroup

_BLOCKS = {"forward": 3, "backward": 2}  # that fit on a multiprocessor


def forward(
    heads: int,
    eps: float,
    x: BFloat16[Array, "M D"],
    gate: BFloat16[Array, "M D"],
    scale: Float32[Array, "D"],
    bias: Float32[Array, "D"],
    *,
    interpret=None,
) -> BFloat16[Array, "M D"]:
    """Zero mean and unit variance over each head, times scale, plus bias; times silu(gate)."""
    wg = _warpgroup(heads, x.shape, interpret)
    of_tokens = wg.tokens(wg.width, x.dtype)
    return kernel_call(
        functools.partial(_forward, wg, eps), wg,
        {"x": x[None], "gate": gate[None], "scale": scale, "bias": bias},
        {"y": jax.ShapeDtypeStruct((1, *x.shape), x.dtype)},
        {"came": 2 * (of_tokens,), "found": of_tokens, "rows": _rows(wg)},
        grid=stream.grid(wg.plan.tiles, heads, _BLOCKS["forward"]), copies=2 * len(of_tokens),
        name="head_norm_forward",
    )["y"][0]  # fmt: skip


def backward(
    heads: int,
    eps: float,
    x: BFloat16[Array, "M D"],
    gate: BFloat16[Array, "M D"],
    scale: Float32[Array, "D"],
    bias: Float32[Array, "D"],
    g: BFloat16[Array, "M D"],
    *,
    interpret=None,
) -> tuple[Array, Array, Float32[Array, "D"], Float32[Array, "D"]]:
    """Gradients of x, gate, scale and bias, from that of the result, g.

    With h the gradient of z: x's is (h - mean(h) - z mean(h z)) / deviation.
    """
    wg = _warpgroup(heads, x.shape, interpret)
    grid = stream.grid(wg.plan.tiles, heads, _BLOCKS["backward"])
    of_tokens, row = wg.tokens(wg.width, x.dtype), wg.numbers(wg.width)
    of_sums = jax.ShapeDtypeStruct((grid.heads, x.shape[1]), jnp.float32)
    of_x = jax.ShapeDtypeStruct((1, *x.shape), x.dtype)
    results = kernel_call(
        functools.partial(_backward, wg, eps), wg,
        {"x": x[None], "gate": gate[None], "scale": scale, "bias": bias, "g": g[None]},
        {"dx": of_x, "dgate": of_x, "dscale": of_sums, "dbias": of_sums},
        {"came": 3 * (of_tokens,), "found": 2 * (of_tokens,), "rows": _rows(wg),
         "sums": (row, row)},
        grid=grid, copies=3 * len(of_tokens), sums=wg.width,
        name="head_norm_backward",
    )  # fmt: skip
    of_scale, of_bias = (jnp.sum(results[name], axis=0) for name in ("dscale", "dbias"))
    return results["dx"][0], results["dgate"][0], of_scale, of_bias


def _warpgroup(heads: int, shape: tuple[int, ...], interpret) -> Warpgroup:
    M, D = shape
    return Warpgroup(Plan(M, D // heads, causal=False, tiling=Tiling()), D // heads, 1, interpret)


def _rows(wg: Warpgroup) -> Any:
    """Shared memory for scale and bias."""
    return plgpu.SMEM((1, 2, wg.width), jnp.float32)


def _forward(
    wg: Warpgroup, eps: float, block: Block, *, x, gate, scale, bias, y, came, found, rows
) -> None:
    found = block.own(found)

    def work(block: Block, i: Array, came: list[Array], carry: tuple[()]) -> tuple[()]:
        x, gate = came
        z, _ = _standardise(wg, eps, x)
        block.wait_for_writes()  # of the tokens before
        for part in wg.halves:
            scale, bias = _load_rows(wg, block, rows, i, *part)
            z_, a = (warp.columns(wg, each, *part) for each in (z, gate))
            a = wg.float32(a)
            tokens.write(wg, found, (z_ * scale + bias) * a * _sigmoid(a), part[0])
        block.write(i, (found, y))
        return carry

    _over_tokens(wg, block, (x, gate), came, (scale, bias), rows, work, ())
    block.wait_for_writes()


def _backward(
    wg: Warpgroup, eps: float, block: Block, *, x, gate, scale, bias, g, dx, dgate, dscale, dbias,
    came, found, rows, sums,
) -> None:  # fmt: skip
    of_x, of_gate = block.own(found)

    def work(block: Block, i: Array, came: list[Array], totals: list[tuple]) -> list[tuple]:
        x, gate, g = came
        z, by_deviation = _standardise(wg, eps, x)
        block.wait_for_writes()  # of the tokens before
        new, hs = [], []
        # A part of the channels after the other, since registers are short.
        for part, (of_scale, of_bias) in zip(wg.halves, totals, strict=True):
            scale, bias = _load_rows(wg, block, rows, i, *part)
            z_, a, of_result = (warp.columns(wg, each, *part) for each in (z, gate, g))
            a, of_result = wg.float32(a), wg.float32(of_result)
            s = _sigmoid(a)
            of_gated = of_result * (z_ * scale + bias) * s * (1 + a * (1 - s))
            tokens.write(wg, of_gate, of_gated, part[0])
            # Rows beyond the last token have a gradient of 0.
            of_y = of_result * a * s
            new.append((of_scale + of_y * z_, of_bias + of_y))
            hs.append(of_y * scale)
        h = warp.joined(wg, hs)
        along_mean, along_z = (_mean(wg, each) for each in (h, h * z))
        tokens.write(wg, of_x, by_deviation * (h - along_mean - z * along_z))
        block.write(i, (of_x, dx), (of_gate, dgate))
        return new

    zeros = [(wg.zeros(count), wg.zeros(count)) for _, count in wg.halves]
    totals = _over_tokens(wg, block, (x, gate, g), came, (scale, bias), rows, work, zeros)
    here, segment = block.by_rows()
    for which, (array, row) in enumerate(zip((dscale, dbias), block.own(sums), strict=True)):
        for (first, count), of_part in zip(wg.halves, totals, strict=True):
            row.at[pl.ds(first, count)][...] = jnp.sum(of_part[which], axis=0)
        here.write_to(array.at[segment], [row], here.channel)
    block.wait_for_writes()


def _over_tokens(
    wg: Warpgroup, block: Block, arrays: tuple, came, weights: tuple, rows,
    work: Callable[..., Any], carry: Any,
) -> Any:  # fmt: skip
    """`stream.over_tokens` of a head's tokens of arrays, with weights' rows in shared memory."""
    (here, _), came = block.by_rows(), block.own(came)
    for of_weight, weight in enumerate(weights):
        row = wg.load_row(weight.at[pl.ds(here.channel, wg.width)])
        block.own(rows).at[of_weight][...] = warp.first_row(wg, row)

    def copies(block: Block, i: Array) -> list:
        places = zip(arrays, came, strict=True)
        return [copy for array, to in places for copy in block.tokens(array, i, to)]

    return stream.over_tokens(
        block, copies, lambda: [tokens.load(wg, x) for x in came], work, carry
    )


def _load_rows(
    wg: Warpgroup, block: Block, rows, i: Array, first: int, count: int
) -> list[Float32[Array, "64 n"]]:
    """Scale and bias, from shared memory again: they would be in too many registers."""
    of_both = block.own(rows, anew=i)
    return [wg.load_row(of_both.at[which, pl.ds(first, count)]) for which in range(2)]


def _standardise(
    wg: Warpgroup, eps: float, x: BFloat16[Array, "64 n"]
) -> tuple[Float32[Array, "64 n"], Float32[Array, "64 n"]]:
    """x with zero mean and unit variance over each row; and one over its deviation."""
    x = wg.float32(x)
    centred = x - _mean(wg, x)
    by_deviation = lax.rsqrt(wg.sum_of_columns(centred * centred) * (1 / wg.width) + eps)
    by_deviation = wg.spread(by_deviation, 0, wg.width)
    return centred * by_deviation, by_deviation


def _mean(wg: Warpgroup, x: Float32[Array, "64 n"]) -> Float32[Array, "64 n"]:
    """Of each row, in all of it."""
    return wg.spread(wg.sum_of_columns(x) * (1 / wg.width), 0, wg.width)


def _sigmoid(x: Float32[Array, "64 n"]) -> Float32[Array, "64 n"]:
    # A root's reciprocal is one instruction, and a quotient several.
    return jnp.square(lax.rsqrt(1 + jnp.exp2(-LOG2_E * x)))
