"""The norm of each head's channels as TPU kernels, in which each array crosses memory once.

Heads do not end where a register's 128 lanes do, so what sums up a head's channels, and gives each
of them what its head has, are products with zeros and ones. To the matrix unit eight heads are as
wide as 128: XLA's products for it, of float32 in six passes each, are as many passes as five
products with a weight matrix of D x D, and their results float32 arrays in memory.

What is unusual: ones are exact in bfloat16, so a product takes as many passes as there are parts of
eight bits of the other operand. Of a mean over squares or gradients two parts are taken, 17 bits;
and of what a head has all three lie side by side in a register, which is one pass (`_spread`).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, BFloat16, Float, Float32

from rwkv_kernels.tpu import token_blocks
from rwkv_kernels.tpu.lanes import LANES
from rwkv_kernels.tpu.token_blocks import dot

_PARTS = 3  # of a float32
MOST_HEADS = LANES // _PARTS


def forward(
    heads: int,
    eps: float,
    x: BFloat16[Array, "P Q D"],
    scale: Float32[Array, "1 D"],
    bias: Float32[Array, "1 D"],
    *,
    interpret=False,
) -> BFloat16[Array, "P Q D"]:
    """Zero mean and unit variance over each head, times scale, plus bias."""

    def kernel(x, scale, bias, member, y):
        z, _ = _standardise(heads, eps, x[...], member)
        y[...] = (z * scale[...] + bias[...]).astype(y.dtype)

    D = x.shape[-1]
    (y,) = token_blocks.call(
        kernel, (x,), (scale, bias, _member(heads, D)), (x,),
        flops=4 * 2 * heads * D, name="head_norm_forward", interpret=interpret,
    )  # fmt: skip
    return y


def backward(
    heads: int,
    eps: float,
    x: BFloat16[Array, "P Q D"],
    scale: Float32[Array, "1 D"],
    g: BFloat16[Array, "P Q D"],
    *,
    interpret=False,
) -> list[Array]:
    """Gradients of x, scale and bias, from that of the result, g.

    With z what is standardised and h its gradient: x's is (h - mean(h) - z mean(h z)) / deviation.
    """

    def kernel(x, g, scale, member, dx, dscale, dbias):
        z, by_deviation = _standardise(heads, eps, x[...], member)
        g = g[...].astype(jnp.float32)
        h = g * scale[...]
        along_mean, along_z = (_spread(heads, _mean(heads, y, member), member) for y in (h, h * z))
        dx[...] = (by_deviation * (h - along_mean - z * along_z)).astype(dx.dtype)
        dscale[...] += jnp.sum(g * z, axis=0, keepdims=True)
        dbias[...] += jnp.sum(g, axis=0, keepdims=True)

    D, of_weights = x.shape[-1], 2 * (jax.ShapeDtypeStruct(scale.shape, jnp.float32),)
    return token_blocks.call(
        kernel, (x, g), (scale, _member(heads, D)), (x,), of_weights,
        flops=8 * 2 * heads * D, name="head_norm_backward", interpret=interpret,
    )  # fmt: skip


def _standardise(
    heads: int, eps: float, x: BFloat16[Array, "rows D"], member
) -> tuple[Float32[Array, "rows D"], Float32[Array, "rows D"]]:
    """x with zero mean and unit variance over each head; and one over its deviation."""
    centred = x.astype(jnp.float32) - _spread(heads, _mean(heads, x, member), member)
    variance = _mean(heads, jnp.square(centred), member)
    by_deviation = _spread(heads, lax.rsqrt(variance + eps), member)
    return centred * by_deviation, by_deviation


def _mean(heads: int, x: Float[Array, "rows D"], member) -> Float32[Array, "rows 128"]:
    """Of each head, as often as a number has parts, heads side by side; then zeros."""
    ones, size = member[...], x.shape[1] // heads
    high = x.astype(jnp.bfloat16)
    total = dot(high, ones, ((1,), (0,)))
    if x.dtype != jnp.bfloat16:
        low = (x - high.astype(jnp.float32)).astype(jnp.bfloat16)
        total = total + dot(low, ones, ((1,), (0,)))
    return total / size


def _spread(heads: int, x: Float32[Array, "rows 128"], member) -> Float32[Array, "rows D"]:
    """To each channel what its head has, all bits of it; x as `_mean` gives it."""
    lane = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    side_by_side = rest = x
    for part in range(_PARTS):
        high = rest.astype(jnp.bfloat16).astype(jnp.float32)
        side_by_side = jnp.where(lane >= part * heads, high, side_by_side)
        rest = rest - high
    return dot(side_by_side.astype(jnp.bfloat16), member[...], ((1,), (1,)))


def _member(heads: int, channels: int) -> BFloat16[Array, "D 128"]:
    """1 where a channel (row) is a head's (column), for each part; heads * _PARTS <= 128."""
    of_heads = np.kron(np.eye(heads), np.ones((channels // heads, 1)))  # [D, H]
    of_parts = np.tile(of_heads, (1, _PARTS))
    return jnp.asarray(np.pad(of_parts, ((0, 0), (0, LANES - of_parts.shape[1]))), jnp.bfloat16)
