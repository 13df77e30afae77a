"""The pieces every part is made of: matrix products, drop path.

There is no `dtype` argument: activations carry the compute dtype, and float32 parameters are cast
to it where they meet.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from rwkv_jax.precision import matmul_precision
from rwkv_jax.wkv import platform

KEPT = "kept"
_Arrays = TypeVar("_Arrays")


class Kernel(nnx.Param):
    """A matrix that nothing but `linear` reads, and so may be cast to the compute dtype before."""


def keep(x: Array) -> Array:
    """Marks what the remat policy "dots" keeps for the backward pass; x itself otherwise."""
    return checkpoint_name(x, KEPT)


def by_itself(x: _Arrays) -> _Arrays:
    """x, one array or a tree of them, of which a GPU's XLA makes no kernel with what it goes into;
    elsewhere as it is.
    """
    return jax.lax.optimization_barrier(x) if platform() == "gpu" else x


def linear(
    x: Float[Array, "*B I"],
    kernel: nnx.Param | Float[Array, "I O"],
    *,
    out_dtype: DTypeLike | None = None,
) -> Float[Array, "*B O"]:
    """x @ kernel in x's dtype, without a bias as all of RWKV-CLIP's; `out_dtype` keeps more bits.

    One matrix product over all leading axes at once: the kernel's gradient contracts them, and over
    several axes XLA's CPU backend would first copy both operands into another layout. A TPU must
    not flatten them: it keeps [B, T, D] as [T, B, D] in memory, where that is a copy itself.
    """
    weights = kernel[...].astype(x.dtype)
    *leading, width = x.shape
    flat = x if platform() == "tpu" else x.reshape(-1, width)  # [*B, I] -> [prod(B), I]
    y = jnp.matmul(
        flat,
        weights,
        precision=matmul_precision(x.dtype),
        preferred_element_type=out_dtype,
    )
    return y.reshape(*leading, y.shape[-1])  # [prod(B), O] -> [*B, O]


def by_patches(
    pixels: Float[Array, "B H W C"],
    kernel: nnx.Param | Float[Array, "P P C D"],
    *,
    out_dtype: DTypeLike | None = None,
) -> Float[Array, "B h w D"]:
    """A convolution whose stride is its size: each patch of P x P pixels times the kernel.

    An image that is no multiple of the patch is padded with zeros at the right and the bottom. It
    is one matrix product of patches that are cut out first, but on a TPU: memory has the same pixel
    of 128 images in a row there, and what cuts patches out of it are five copies of all pixels. A
    convolution, three times as slow on a CPU, reads them as they lie.
    """
    weights = kernel[...]
    P, _, C, D = weights.shape
    B, H, W, _ = pixels.shape
    h, w = -(-H // P), -(-W // P)
    beyond = ((0, h * P - H), (0, w * P - W))
    if platform() == "tpu":
        return jax.lax.conv_general_dilated(
            pixels,
            weights.astype(pixels.dtype),
            window_strides=(P, P),
            padding=beyond,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=matmul_precision(pixels.dtype),
            preferred_element_type=out_dtype,
        )
    rows = jnp.pad(pixels, ((0, 0), *beyond, (0, 0)))
    rows = rows.reshape(B * h, P, w, P * C)  # [B, h P, w P, C] -> [B h, P, w, P C]
    patches = rows.swapaxes(1, 2).reshape(B, h, w, P * P * C)  # [B h, w, P, P C] -> here
    return linear(patches, weights.reshape(P * P * C, D), out_dtype=out_dtype)  # [P, P, C, D]


def drop_path(
    x: Float[Array, "B T D"], rate: float | Float[Array, ""], key: PRNGKeyArray
) -> Float[Array, "B T D"]:
    """Drops the whole branch of a sample with probability `rate`; scales the rest by 1/(1-rate).

    Source: Huang et al., Deep Networks with Stochastic Depth (arXiv 1603.09382).
    """
    kept = jax.random.bernoulli(key, 1.0 - rate, (x.shape[0], 1, 1))
    return x * (kept / (1.0 - rate)).astype(x.dtype)
