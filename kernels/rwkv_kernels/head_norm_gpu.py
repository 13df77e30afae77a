"""`gated_head_norm` by kernels for a Hopper GPU (`gpu/head_norm.py`).

XLA takes seven kernels for the norm, its gate and their gradients, each of which reads what others
have read. Tokens are [M, D] to these two, whichever axes they come in.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float

from rwkv_kernels import pallas_gpu
from rwkv_kernels.gpu import head_norm as kernels
from rwkv_kernels.gpu.plan import TILE

# Of a head. A thread has not the registers for the gradients of more scales and biases.
_MOST_CHANNELS = 96


def gated_head_norm(
    x: BFloat16[Array, "*B D"],
    gate: BFloat16[Array, "*B D"],
    scale: Float[Array, "D"],
    bias: Float[Array, "D"],
    heads: int,
    eps: float,
    *,
    interpret=None,
) -> BFloat16[Array, "*B D"]:
    """See `head_norm.gated_head_norm`. `interpret`: the Mosaic GPU interpreter's parameters."""
    M = math.prod(x.shape[:-1])
    flat = (y.reshape(M, -1) for y in (x, gate))  # [*B, D] -> [M, D]
    return _gated(heads, eps, interpret, *flat, scale, bias).reshape(x.shape)  # [M, D] -> [*B, D]


def unservable(shape: tuple[int, ...], dtype, heads: int, device_kind: str) -> tuple[str, ...]:
    """Every reason why these kernels cannot serve tokens [..., D] on a GPU; nothing if they can."""
    reasons: tuple[str, ...] = ()
    if not pallas_gpu.is_hopper(device_kind):
        reasons += (f"it is a Hopper GPU's kernel, and this is {device_kind!r}",)
    if dtype != jnp.bfloat16:
        reasons += (f"it takes bfloat16, and x and gate together are {dtype}",)
    size, rest = divmod(shape[-1], max(heads, 1))
    if heads < 1 or rest or size % 16 or not TILE <= size <= _MOST_CHANNELS:
        reasons += (
            f"D = {shape[-1]} of {heads} heads, but it takes heads of multiples of 16 channels "
            f"from {TILE} to {_MOST_CHANNELS}",
        )
    if 0 in shape:
        reasons += (f"x {shape} is empty",)
    return reasons


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _gated(heads: int, eps: float, interpret, x, gate, scale, bias):
    return kernels.forward(heads, eps, x, gate, *_float32(scale, bias), interpret=interpret)


def _forward(heads: int, eps: float, interpret, x, gate, scale, bias):
    return _gated(heads, eps, interpret, x, gate, scale, bias), (x, gate, scale, bias)


def _backward(heads: int, eps: float, interpret, kept, g):
    x, gate, scale, bias = kept
    scale_, bias_ = _float32(scale, bias)
    of_x, of_gate, of_scale, of_bias = kernels.backward(
        heads, eps, x, gate, scale_, bias_, g, interpret=interpret
    )
    return of_x, of_gate, of_scale.astype(scale.dtype), of_bias.astype(bias.dtype)


def _float32(*rows: Float[Array, "D"]) -> tuple[Array, ...]:
    return tuple(x.astype(jnp.float32) for x in rows)


_gated.defvjp(_forward, _backward)
