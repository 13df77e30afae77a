"""Logits of RWKV-6's decays, a thin product and a bias, where a kernel serves: on a Hopper GPU.

XLA for a GPU adds the bias in a kernel of its own, which takes as long as the product: both wait
for the result's memory. Elsewhere a product takes its bias with it.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float, Float32

from rwkv_kernels import pallas_gpu
from rwkv_kernels.gpu import decay_logits as kernels
from rwkv_kernels.platforms import device_kind, platform
from rwkv_kernels.switch import switched_off

_MOST_RANK = 128


def decay_logits(
    z: BFloat16[Array, "*B R"],
    up: Float[Array, "R D"],
    bias: Float[Array, "D"],
    *,
    interpret=None,
) -> Float32[Array, "*B D"]:
    """bias + z up, of bfloat16 in float32.

    Args:
      z: what each token's decays are of, R channels, bfloat16.
      up: from those to all channels; bfloat16 in the kernel.
      bias: of each channel; float32 in the kernel.
      interpret: the Mosaic GPU interpreter's parameters.

    Returns:
      Logits w: a decay is exp(-exp(w)). Gradients have the dtypes of what they are of.

    Raises:
      ValueError: shapes that disagree, or that no kernel serves (see `misfits`); on which device
        is for the caller to ask (`unservable`).

    Source: RWKV-6 (arXiv 2404.05892), section 4.
    """
    for name, array, wanted in (("z", z, (*z.shape[:-1], len(up))), ("bias", bias, up.shape[1:])):
        if array.shape != wanted:
            raise ValueError(
                f"decay_logits: {name} must be {wanted} to go with up {up.shape}, got "
                f"{array.shape}."
            )
    reasons = misfits(z.shape, z.dtype, up.shape)
    if reasons:
        raise ValueError(f"decay_logits: no kernel serves z {z.shape}: {'; '.join(reasons)}.")
    flat = z.reshape(math.prod(z.shape[:-1]), -1)  # [*B, R] -> [M, R]
    w = _decay_logits(interpret, flat, up.astype(z.dtype), bias.astype(jnp.float32))
    return w.reshape(*z.shape[:-1], -1)  # [M, D] -> [*B, D]


def unservable(shape: tuple[int, ...], dtype, up_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Every reason why no kernel serves z [..., R] of a shape and dtype on the device that is
    compiled for; nothing if one does.
    """
    reasons = switched_off()
    if platform() != "gpu" or not pallas_gpu.is_hopper(device_kind()):
        reasons += (f"it is a Hopper GPU's kernel, and this is {device_kind()!r}",)
    return reasons + misfits(shape, dtype, up_shape)


def misfits(shape: tuple[int, ...], dtype, up_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Every reason why shapes and dtype do not suit the kernel."""
    R, D = up_shape
    reasons: tuple[str, ...] = ()
    if dtype != jnp.bfloat16:
        reasons += (f"it takes bfloat16, and z is {dtype}",)
    if R % 32 or not 0 < R <= _MOST_RANK:  # with operands of 64 channels 32 are contracted at once
        reasons += (f"a rank of {R}, but it takes multiples of 32 up to {_MOST_RANK}",)
    if D % kernels.CHANNELS or not D:
        reasons += (f"D = {D}, but it takes multiples of {kernels.CHANNELS}",)
    if 0 in shape:
        reasons += (f"z {shape} is empty",)
    return reasons


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _decay_logits(interpret, z, up, bias):
    return kernels.forward(z, up, bias, interpret=interpret)


def _forward(interpret, z, up, bias):
    return _decay_logits(interpret, z, up, bias), (z, up)


def _backward(interpret, kept, g):
    del interpret
    return *jax.vjp(_product, *kept)[1](g), jnp.sum(g, axis=0)


def _product(z: Array, up: Array) -> Float32[Array, "M D"]:
    return jnp.matmul(z, up, preferred_element_type=jnp.float32)


_decay_logits.defvjp(_forward, _backward)
