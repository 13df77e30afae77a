"""`ddlerp` by kernels for a Hopper GPU: the three of `gpu/ddlerp.py`, and what puts them together.

XLA writes each product to memory and reads it again, and more for the gradient: twice the time of
these kernels (docs/gpu_beside.md). Tokens are [M, D] to them, whichever axes they come in.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float

from rwkv_kernels import pallas_gpu
from rwkv_kernels.gpu.ddlerp import CHANNELS, Uses, by_channels, by_tokens, forward

_MOST_WIDE = 160  # channels of z: the gradients of as many stay in a thread's registers


def ddlerp(
    x: BFloat16[Array, "*B D"],
    xx: BFloat16[Array, "*B D"],
    z: BFloat16[Array, "*B AR"],
    maa: Float[Array, "A D"],
    up: Float[Array, "A R D"],
    *,
    interpret=None,
) -> tuple[BFloat16[Array, "*B D"], ...]:
    """See `ddlerp.ddlerp`. `interpret`: the Mosaic GPU interpreter's parameters."""
    A, R, _ = up.shape
    M = math.prod(x.shape[:-1])
    flat = (y.reshape(M, -1) for y in (x, xx, z))  # [*B, D] -> [M, D]
    found = _ddlerp(Uses(A, R), interpret, *flat, maa.astype(jnp.float32), up)
    return tuple(y.reshape(x.shape) for y in found)  # [M, D] -> [*B, D]


def unservable(
    shape: tuple[int, ...], dtype, up_shape: tuple[int, ...], device_kind: str
) -> tuple[str, ...]:
    """Every reason why these kernels cannot serve a call on a GPU; nothing if they can."""
    del shape  # any number of tokens
    A, R, D = up_shape
    reasons: tuple[str, ...] = ()
    if not pallas_gpu.is_hopper(device_kind):
        reasons += (f"it is a Hopper GPU's kernel, and this is {device_kind!r}",)
    if dtype != jnp.bfloat16:
        reasons += (f"it computes in bfloat16, and x, xx and z together are {dtype}",)
    if D % CHANNELS:
        reasons += (f"D = {D}, but it takes multiples of {CHANNELS}",)
    if (
        R % 32 or not 0 < A * R <= _MOST_WIDE
    ):  # products with operands of 64 channels contract 32 at once
        reasons += (
            f"{A} uses of rank {R}, but it takes ranks of multiples of 32, {_MOST_WIDE} in all",
        )
    return reasons


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ddlerp(uses: Uses, interpret, x, xx, z, maa, up):
    return forward(uses, x, xx, z, maa, _as_kernels_see(up), interpret=interpret)


def _ddlerp_forward(uses: Uses, interpret, x, xx, z, maa, up):
    return _ddlerp(uses, interpret, x, xx, z, maa, up), (xx, z, maa, up)


def _ddlerp_backward(uses: Uses, interpret, kept, gradients):
    xx, z, maa, up = kept
    of_tokens = by_tokens(uses, xx, z, maa, _as_kernels_see(up), gradients, interpret=interpret)
    of_maa, of_up = by_channels(uses, xx, z, gradients, interpret=interpret)
    return *of_tokens, of_maa, of_up.reshape(up.shape).astype(up.dtype)  # [A R, D] -> [A, R, D]


def _as_kernels_see(up: Float[Array, "A R D"]) -> BFloat16[Array, "AR D"]:
    return up.reshape(-1, up.shape[-1]).astype(jnp.bfloat16)  # [A, R, D] -> [A R, D]


_ddlerp.defvjp(_ddlerp_forward, _ddlerp_backward)
