"""`gated_head_norm` by the norm's kernels for a TPU (`tpu/head_norm.py`); the gate is XLA's.

[B, T, H, N] is another layout there than [B, T, D], and heads do not end where registers do.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float

from rwkv_kernels.tpu import head_norm as kernels
from rwkv_kernels.tpu import token_blocks
from rwkv_kernels.tpu.lanes import LANES
from rwkv_kernels.tpu.plan import too_old
from rwkv_kernels.tpu.token_blocks import as_they_lie


def gated_head_norm(
    x: BFloat16[Array, "B T D"],
    gate: BFloat16[Array, "B T D"],
    scale: Float[Array, "D"],
    bias: Float[Array, "D"],
    heads: int,
    eps: float,
    *,
    interpret=False,
) -> BFloat16[Array, "B T D"]:
    """See `head_norm.gated_head_norm`."""
    return head_norm(x, scale, bias, heads, eps, interpret=interpret) * jax.nn.silu(gate)


def unservable(shape: tuple[int, ...], dtype, heads: int, device_kind: str) -> tuple[str, ...]:
    """Every reason why the kernels cannot serve tokens [B, T, D] on a TPU; nothing if they can."""
    reasons = too_old(device_kind)
    if dtype != jnp.bfloat16:
        reasons += (f"it takes bfloat16, and x and gate together are {dtype}",)
    if shape[-1] % LANES or not 0 < heads <= kernels.MOST_HEADS or shape[-1] % heads:
        reasons += (
            f"D = {shape[-1]} of {heads} heads, but it takes multiples of {LANES} and at most "
            f"{kernels.MOST_HEADS} heads, which divide them",
        )
    return reasons + token_blocks.unservable(shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def head_norm(
    x: BFloat16[Array, "B T D"],
    scale: Float[Array, "D"],
    bias: Float[Array, "D"],
    heads: int,
    eps: float,
    interpret=False,
) -> BFloat16[Array, "B T D"]:
    """Without the gate. `interpret`: the TPU interpreter's parameters, or False."""
    (x_,) = as_they_lie(x, like=x.shape)
    y = kernels.forward(heads, eps, x_, _row(scale), _row(bias), interpret=interpret)
    return as_they_lie(y, like=x.shape)[0]


def _forward(x, scale, bias, heads: int, eps: float, interpret):
    return head_norm(x, scale, bias, heads, eps, interpret), (x, scale, bias)


def _backward(heads: int, eps: float, interpret, kept, g):
    x, scale, bias = kept
    x_, g_ = as_they_lie(x, g, like=x.shape)
    of_x, of_scale, of_bias = kernels.backward(heads, eps, x_, _row(scale), g_, interpret=interpret)
    (of_x,) = as_they_lie(of_x, like=x.shape)
    return of_x, of_scale[0].astype(scale.dtype), of_bias[0].astype(bias.dtype)


head_norm.defvjp(_forward, _backward)


def _row(x: Float[Array, "D"]) -> Float[Array, "1 D"]:
    return x.astype(jnp.float32)[None]
