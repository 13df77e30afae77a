"""Norms over channels, of a token or of each of its heads: LayerNorm and RWKV's head norm.

They compute in float32 and give back what they got. Their gradient is written out, so that nothing
but what they are given and each token's moments are kept for it: what they compute with are float32
arrays, each twice their input, and cheap to compute again.

Means are kernels of their own on a GPU. XLA would make one of them and of what is made of them,
which takes 1.2 to 2.2 times as long on an H200: forward 26 us in the place of 22 for a norm of
[256, 49, 640], 43 in the place of 25 by heads; backward 97 in the place of 54, 126 in the place of
66.
"""

import dataclasses
import functools
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32

from rwkv_jax.models.layers import by_itself, keep
from rwkv_jax.wkv import head_norm_kernel, platform

LAYER_NORM_EPS = 1e-5


class Groups(Protocol):
    """Which channels are normed together: means over each group, and their way back to channels."""

    def mean(self, x: Float32[Array, "*B D"]) -> Float32[Array, "*B G"]: ...

    def spread(self, x: Float32[Array, "*B G"]) -> Float32[Array, "*B D"]: ...


@dataclasses.dataclass(frozen=True)
class LastAxis:
    """All of the last axis."""

    def mean(self, x: Float32[Array, "*B D"]) -> Float32[Array, "*B 1"]:
        # Not the mean by itself: its division would be a kernel more.
        return by_itself(jnp.sum(x, axis=-1, keepdims=True)) / x.shape[-1]

    def spread(self, x: Float32[Array, "*B 1"]) -> Float32[Array, "*B 1"]:
        return x


@dataclasses.dataclass(frozen=True)
class HeadsOfLastAxis:
    """Each head's channels of the last axis, without a view by head.

    What a TPU takes where no kernel serves. Sums over a head are products with a matrix of zeros
    and ones. On a TPU [B, T, H, N] is another layout than [B, T, D], and for a norm over N XLA
    copied the activations to it and back; on a CPU the products take twice as long as the view.
    """

    heads: int
    size: int

    def mean(self, x: Float32[Array, "*B D"]) -> Float32[Array, "*B H"]:
        return self._product(x, self._member()) / self.size

    def spread(self, x: Float32[Array, "*B H"]) -> Float32[Array, "*B D"]:
        return self._product(x, self._member().T)

    def _member(self) -> Float32[Array, "D H"]:
        return jnp.asarray(np.kron(np.eye(self.heads), np.ones((self.size, 1))), jnp.float32)

    def _product(self, x: Array, matrix: Array) -> Array:
        return jnp.matmul(x, matrix, precision=jax.lax.Precision.HIGHEST)


class Moments(NamedTuple):
    """Of each group: its mean, and one over its deviation."""

    mean: Float32[Array, "*B _"]
    by_deviation: Float32[Array, "*B _"]


def moments(x: Float[Array, "*B D"], groups: Groups, eps: float) -> Moments:
    """In float32. Kept for the backward pass: they are few, and to compute them x is read twice."""
    x = x.astype(jnp.float32)
    mean = groups.mean(x)
    # Not E[x^2] - E[x]^2, which cancels in float32 when the mean is large.
    variance = groups.mean(jnp.square(x - groups.spread(mean)))
    return Moments(keep(mean), keep(by_itself(jax.lax.rsqrt(variance + eps))))


def standardise(x: Float[Array, "*B D"], groups: Groups, of_x: Moments) -> Float32[Array, "*B D"]:
    """Zero mean and unit variance over each group, in float32."""
    centred = x.astype(jnp.float32) - groups.spread(of_x.mean)
    return centred * groups.spread(of_x.by_deviation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def norm(
    x: Float[Array, "*B D"],
    scale: Float[Array, "*G"],
    bias: Float[Array, "*G"],
    groups: Groups,
    eps: float,
) -> Float[Array, "*B D"]:
    """`standardise` times scale plus bias, whose axes are the last ones of x; in x's dtype."""
    return _normed(x, scale, bias, groups, moments(x, groups, eps))


def _normed(x, scale, bias, groups: Groups, of_x: Moments) -> Float[Array, "*B D"]:
    return (standardise(x, groups, of_x) * scale + bias).astype(x.dtype)


def _forward(x, scale, bias, groups: Groups, eps: float):
    of_x = moments(x, groups, eps)
    return _normed(x, scale, bias, groups, of_x), (x, scale, bias, of_x)


def _backward(groups: Groups, eps: float, kept, g: Float[Array, "*B D"]):
    """With z what is standardised and h its gradient: x's is (h - mean(h) - z mean(h z)) / std."""
    x, scale, bias, of_x = kept
    g = g.astype(jnp.float32)
    z = standardise(x, groups, of_x)
    h = g * scale
    along_mean, along_z = (groups.spread(groups.mean(each)) for each in (h, h * z))
    dx = groups.spread(of_x.by_deviation) * (h - along_mean - z * along_z)
    leading = tuple(range(x.ndim - scale.ndim))
    of_scale, of_bias = jnp.sum(g * z, leading), jnp.sum(g, leading)
    return dx.astype(x.dtype), of_scale.astype(scale.dtype), of_bias.astype(bias.dtype)


norm.defvjp(_forward, _backward)


class LayerNorm(nnx.Module):
    """Layer norm over the channels, computed in float32."""

    def __init__(self, width: int) -> None:
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return norm(x, self.scale[...], self.bias[...], LastAxis(), LAYER_NORM_EPS)


class HeadNorm(nnx.Module):
    """Group norm with a group a head, token by token, times silu of a gate: what RWKV puts after
    the WKV.
    """

    def __init__(self, scale: Float[Array, "D"], eps: float) -> None:
        self.scale = nnx.Param(scale)
        self.bias = nnx.Param(jnp.zeros_like(scale))
        self.eps = eps

    def __call__(
        self, y: Float[Array, "B T D"], gate: Float[Array, "B T D"], heads: int
    ) -> Float[Array, "B T D"]:
        scale, bias = self.scale[...], self.bias[...]
        kernel = head_norm_kernel(y.shape, jnp.result_type(y, gate), heads, self.eps)
        if kernel is not None:
            return kernel(y, gate, scale, bias)
        return self._normed(y, scale, bias, heads) * jax.nn.silu(gate)

    def _normed(self, y: Array, scale: Array, bias: Array, heads: int) -> Float[Array, "B T D"]:
        B, T, D = y.shape
        if platform() == "tpu":
            return norm(y, scale, bias, HeadsOfLastAxis(heads, D // heads), self.eps)
        y = y.reshape(B, T, heads, -1)  # [B, T, D] -> [B, T, H, N]
        scale, bias = (x.reshape(heads, -1) for x in (scale, bias))  # [D] -> [H, N]
        normed = norm(y, scale, bias, LastAxis(), self.eps)
        return normed.reshape(B, T, D)  # [B, T, H, N] -> [B, T, D]
