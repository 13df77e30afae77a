"""The norm of each head's channels, token by token, where a kernel serves: on a TPU.

[B, T, H, N] is another layout there than [B, T, D], and heads do not end where registers do. On a
GPU or CPU a view by head costs nothing, and XLA needs no kernel.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float

from rwkv_kernels.platforms import device_kind, platform
from rwkv_kernels.tpu import head_norm as kernels
from rwkv_kernels.tpu import token_blocks
from rwkv_kernels.tpu.lanes import LANES
from rwkv_kernels.tpu.token_blocks import as_they_lie


def head_norm(
    x: BFloat16[Array, "B T D"],
    scale: Float[Array, "D"],
    bias: Float[Array, "D"],
    heads: int,
    eps: float,
    *,
    interpret=False,
) -> BFloat16[Array, "B T D"]:
    """Zero mean and unit variance over each head's channels, times scale, plus bias; in float32.

    Args:
      x: tokens, bfloat16, heads side by side.
      scale, bias: of each channel.
      heads: H, which divides D.
      eps: added to the variance.
      interpret: the TPU interpreter's parameters, or False.

    Returns:
      y like x. Its gradients have the dtypes of what they are of.

    Raises:
      ValueError: x, or its heads, that the kernels cannot take (see `misfits`); a scale or bias of
        another shape.

    Source: group norm (arXiv 1803.08494) with a group a head, as RWKV-6 (arXiv 2404.05892) has it.
    """
    for name, array in (("scale", scale), ("bias", bias)):
        if array.shape != x.shape[-1:]:
            raise ValueError(
                f"head_norm: {name} must be {x.shape[-1:]} to go with x {x.shape}, got "
                f"{array.shape}."
            )
    reasons = misfits(x.shape, x.dtype, heads)
    if reasons:
        raise ValueError(f"head_norm: no kernel serves x {x.shape}: {'; '.join(reasons)}.")
    return _head_norm(heads, eps, interpret, x, scale, bias)


def unservable(shape: tuple[int, ...], dtype, heads: int) -> tuple[str, ...]:
    """Every reason why no kernel serves tokens [B, T, D] on the device that is compiled for."""
    if platform() != "tpu":
        return (f"it is a TPU's kernel, and this is {device_kind()!r}",)
    return misfits(shape, dtype, heads)


def misfits(shape: tuple[int, ...], dtype, heads: int) -> tuple[str, ...]:
    """Every reason why tokens, or their heads, do not suit the kernels."""
    reasons: tuple[str, ...] = ()
    if dtype != jnp.bfloat16:
        reasons += (f"it takes bfloat16, and x is {dtype}",)
    if shape[-1] % LANES or shape[-1] % heads or heads > kernels.MOST_HEADS:
        reasons += (
            f"D = {shape[-1]} of {heads} heads, but it takes multiples of {LANES} and at most "
            f"{kernels.MOST_HEADS} heads, which divide them",
        )
    return reasons + token_blocks.unservable(shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _head_norm(heads: int, eps: float, interpret, x, scale, bias):
    (x_,) = as_they_lie(x, like=x.shape)
    y = kernels.forward(heads, eps, x_, _row(scale), _row(bias), interpret=interpret)
    return as_they_lie(y, like=x.shape)[0]


def _forward(heads: int, eps: float, interpret, x, scale, bias):
    return _head_norm(heads, eps, interpret, x, scale, bias), (x, scale, bias)


def _backward(heads: int, eps: float, interpret, kept, g):
    x, scale, bias = kept
    x_, g_ = as_they_lie(x, g, like=x.shape)
    of_x, of_scale, of_bias = kernels.backward(heads, eps, x_, _row(scale), g_, interpret=interpret)
    (of_x,) = as_they_lie(of_x, like=x.shape)
    return of_x, of_scale[0].astype(scale.dtype), of_bias[0].astype(bias.dtype)


_head_norm.defvjp(_forward, _backward)


def _row(x: Float[Array, "D"]) -> Float[Array, "1 D"]:
    return x.astype(jnp.float32)[None]
