"""How fast each channel forgets, computed from the token itself: RWKV-6's data-dependent decay."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from rwkv_jax.models.layers import linear
from rwkv_jax.wkv import decay_kernel


def decay_logits(
    z: Float[Array, "B T R"], up: nnx.Param, bias: Float[Array, "D"]
) -> Float32[Array, "B T D"]:
    """bias + z @ up in float32: the decay is exp(-exp(w)), and an error in w one in an exponent.

    By a kernel where one serves (`rwkv_kernels.decay_logits`).

    Source: RWKV-6 (arXiv 2404.05892), section 4.
    """
    kernel = decay_kernel(z.shape, z.dtype, up.shape)
    if kernel is not None:
        return kernel(z, up[...], bias)
    return bias + linear(z, up, out_dtype=jnp.float32)
