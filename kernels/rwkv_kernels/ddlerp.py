"""RWKV-6's data-dependent interpolation of a token and its neighbour, by kernels for a Hopper GPU.

A token is used in several ways, and chooses for each of them how much of its neighbour to look at:
x + xx (maa_a + z_a up_a), with xx the neighbour less the token, and z up a product of low rank. On
a GPU XLA writes each product to memory and reads it again, and more for the gradient: twice the
time of these kernels (docs/gpu_ddlerp.md).

Where no kernel serves (`unservable`) the formula is XLA's to compile: there is no other
implementation here.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float

from rwkv_kernels import pallas_gpu
from rwkv_kernels.gpu.ddlerp import CHANNELS, Uses, by_channels, by_tokens, forward
from rwkv_kernels.platforms import device_kind, platform

_MOST_WIDE = 160  # channels of z: the gradients of as many stay in a thread's registers


def ddlerp(
    x: Float[Array, "*B D"],
    xx: Float[Array, "*B D"],
    z: Float[Array, "*B AR"],
    maa: Float[Array, "A D"],
    up: Float[Array, "A R D"],
    *,
    interpret=None,
) -> tuple[Float[Array, "*B D"], ...]:
    """x + xx (maa_a + z_a up_a) for each use a; products of bfloat16, all else in float32.

    Args:
      x: tokens, bfloat16.
      xx: their neighbours less them, like x.
      z: what tokens choose by, R channels for each use, bfloat16.
      maa: what is added to each choice, whatever the token is; float32 in the kernels.
      up: from choices to channels; bfloat16 in the kernels.
      interpret: None on a GPU, else the Mosaic GPU interpreter's parameters.

    Returns:
      A arrays like x.

    Raises:
      ValueError: shapes that disagree, or that no kernel serves (see `unservable`).

    Source: RWKV-6 (arXiv 2404.05892), section 4, "ddlerp".
    """
    A, R, D = up.shape
    token = (*x.shape[:-1], D)
    shapes = {"x": (x, token), "xx": (xx, token), "z": (z, (*x.shape[:-1], A * R))}
    for name, (array, wanted) in (shapes | {"maa": (maa, (A, D))}).items():
        if array.shape != wanted:
            raise ValueError(
                f"ddlerp: {name} must be {wanted} to go with up {up.shape} and x's tokens "
                f"{x.shape[:-1]}, got {array.shape}."
            )
    reasons = _misfits(jnp.result_type(x, xx, z), up.shape)
    if reasons:
        raise ValueError(f"ddlerp: no kernel serves x {x.shape}, up {up.shape}: {reasons[0]}.")
    M = math.prod(x.shape[:-1])
    if M < 1:
        raise ValueError(f"ddlerp: x must hold a token at least, got shape {x.shape}.")
    flat = (y.reshape(M, -1) for y in (x, xx, z))  # [*B, D] -> [M, D]
    found = _ddlerp(Uses(A, R), interpret, *flat, maa.astype(jnp.float32), up)
    return tuple(y.reshape(x.shape) for y in found)  # [M, D] -> [*B, D]


def unservable(dtype, up_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Every reason why no kernel serves a call on the device that is compiled for; nothing if one
    does.
    """
    if platform() != "gpu" or not pallas_gpu.is_hopper(device_kind()):
        return (f"it is a Hopper GPU's kernel, and this is {device_kind()!r}",)
    return _misfits(dtype, up_shape)


def _misfits(dtype, up_shape: tuple[int, ...]) -> tuple[str, ...]:
    A, R, D = up_shape
    reasons: tuple[str, ...] = ()
    if dtype != jnp.bfloat16:
        reasons += (f"it computes in bfloat16, and x, xx and z together are {dtype}",)
    if D % CHANNELS:
        reasons += (f"D = {D}, but it takes multiples of {CHANNELS}",)
    if R % 32 or A * R > _MOST_WIDE:  # products with operands of 64 channels contract 32 at once
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
