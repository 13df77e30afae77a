"""The pieces every part is made of: matrix products, norms, drop path.

There is no `dtype` argument: activations carry the compute dtype, and float32 parameters are cast
to it where they meet. Norms compute in float32 and give back what they got.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from rwkv_jax.precision import matmul_precision
from rwkv_jax.wkv import platform

LAYER_NORM_EPS = 1e-5
KEPT = "kept"


def keep(x: Array) -> Array:
    """Marks what the remat policy "dots" keeps for the backward pass; x itself otherwise."""
    return checkpoint_name(x, KEPT)


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


def standardise(x: Float[Array, "*B N"], eps: float) -> Float[Array, "*B N"]:
    """Zero mean and unit variance over the last axis, in float32."""
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    # Not E[x^2] - E[x]^2, which cancels in float32 when the mean is large.
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + eps)


def standardise_heads(x: Float[Array, "B T D"], heads: int, eps: float) -> Float[Array, "B T D"]:
    """`standardise` over each head's channels, in float32, without a view by head.

    Sums over a head are products with a matrix of zeros and ones. On a TPU [B, T, H, N] is another
    layout than [B, T, D], and a norm over N made XLA copy the activations to it and back; on a CPU
    the products take twice as long as the view.
    """
    size = x.shape[-1] // heads
    member = jnp.asarray(np.kron(np.eye(heads), np.ones((size, 1))), jnp.float32)  # [D, H]

    def mean(x: Float[Array, "B T D"]) -> Float[Array, "B T H"]:
        return jnp.matmul(x, member, precision=jax.lax.Precision.HIGHEST) / size

    def spread(x: Float[Array, "B T H"]) -> Float[Array, "B T D"]:
        return jnp.matmul(x, member.T, precision=jax.lax.Precision.HIGHEST)

    x = x.astype(jnp.float32)
    centred = x - spread(mean(x))
    return centred * spread(jax.lax.rsqrt(mean(jnp.square(centred)) + eps))


class LayerNorm(nnx.Module):
    """Layer norm over the channels, computed in float32."""

    def __init__(self, width: int) -> None:
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return _lean(_layer_norm)(x, self.scale[...], self.bias[...])


def _layer_norm(
    x: Float[Array, "*B D"], scale: Float[Array, "D"], bias: Float[Array, "D"]
) -> Float[Array, "*B D"]:
    return (standardise(x, LAYER_NORM_EPS) * scale + bias).astype(x.dtype)


def _lean(norm: Callable[..., Array]) -> Callable[..., Array]:
    """The norm, of which nothing but what it is given is kept for the backward pass: it is cheap to
    compute again, and what it computes with are float32 arrays, each twice its input.
    """
    return jax.checkpoint(norm, prevent_cse=False)


class HeadNorm(nnx.Module):
    """Group norm with a group a head, token by token: what RWKV puts after the WKV."""

    def __init__(self, scale: Float[Array, "D"], eps: float) -> None:
        self.scale = nnx.Param(scale)
        self.bias = nnx.Param(jnp.zeros_like(scale))
        self.eps = eps

    def __call__(self, y: Float[Array, "B T H N"]) -> Float[Array, "B T D"]:
        return _lean(self._norm)(y, self.scale[...], self.bias[...])

    def _norm(
        self, y: Float[Array, "B T H N"], scale: Float[Array, "D"], bias: Float[Array, "D"]
    ) -> Float[Array, "B T D"]:
        B, T, H, N = y.shape
        flat = y.reshape(B, T, H * N)  # [B, T, H, N] -> [B, T, D]
        if platform() == "tpu":
            normed = standardise_heads(flat, H, self.eps)
        else:
            normed = standardise(y, self.eps).reshape(B, T, H * N)  # [B, T, H, N] -> [B, T, D]
        return (normed * scale + bias).astype(y.dtype)


def drop_path(
    x: Float[Array, "B T D"], rate: float | Float[Array, ""], key: PRNGKeyArray
) -> Float[Array, "B T D"]:
    """Drops the whole branch of a sample with probability `rate`; scales the rest by 1/(1-rate).

    Source: Huang et al., Deep Networks with Stochastic Depth (arXiv 1603.09382).
    """
    kept = jax.random.bernoulli(key, 1.0 - rate, (x.shape[0], 1, 1))
    return x * (kept / (1.0 - rate)).astype(x.dtype)
