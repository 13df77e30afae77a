"""Initial values. Those of RWKV depend on how deep a layer is, and are functions of its index.

`layer` may be traced (all layers are made at once by `jax.vmap`). i = channel / D,
p = layer / (depth - 1) runs from 0 to 1, q = 1 - layer / depth from 1 to almost 0.
Source: RWKV-6 (arXiv 2404.05892), appendix on initialisation, and the authors' RWKV-CLIP.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Layer = int | Array
Init = Callable[[PRNGKeyArray, tuple[int, ...]], Array]  # kernels are [..., inputs, outputs]


def uniform(bound: float) -> Init:
    def init(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
        return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

    return init


def zeros(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
    del key
    return jnp.zeros(shape)


def fan_in_uniform(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
    """PyTorch's default of linear and convolution kernels: uniform within 1/sqrt(fan in)."""
    return uniform(1.0 / math.sqrt(math.prod(shape[:-1])))(key, shape)


def scaled_orthogonal(scale: float) -> Init:
    """Orthogonal; where outputs outnumber inputs, also times sqrt(outputs / inputs)."""

    def init(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
        inputs, outputs = shape
        gain = scale * math.sqrt(max(outputs / inputs, 1.0))
        return jax.nn.initializers.orthogonal(gain)(key, shape, jnp.float32)

    return init


def depth_ratios(layer: Layer, depth: int) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(p, q); p is 0 in a stack of one layer."""
    layer = jnp.asarray(layer, jnp.float32)
    return layer / max(depth - 1, 1), 1.0 - layer / depth


def channel_power(width: int, exponent: Array) -> Float[Array, "D"]:
    """i ** exponent."""
    return (jnp.arange(width, dtype=jnp.float32) / width) ** exponent


def spatial_maa_x(layer: Layer, depth: int, width: int) -> Float[Array, "D"]:
    """The share of the shifted token in what chooses the shares: 1 - i^q."""
    _, q = depth_ratios(layer, depth)
    return 1.0 - channel_power(width, q)


def spatial_maa(layer: Layer, depth: int, width: int) -> Float[Array, "5 D"]:
    """Base shares of the shifted token in the inputs of w, k, v, r, g."""
    p, q = depth_ratios(layer, depth)
    power, root = channel_power(width, q), channel_power(width, 0.5 * q)
    return 1.0 - jnp.stack([power, power, power + 0.3 * p, root, root])


def decay(layer: Layer, depth: int, width: int) -> Float[Array, "D"]:
    """Decay logits from -6 (slow) to -1 (fast): -6 + 5 (n / (D-1))^(0.7 + 1.3 p)."""
    p, _ = depth_ratios(layer, depth)
    return -6.0 + 5.0 * jnp.linspace(0.0, 1.0, width) ** (0.7 + 1.3 * p)


def bonus(layer: Layer, depth: int, width: int) -> Float[Array, "D"]:
    """u: p (1 - n / (D-1)) + 0.1 ((n+1) % 3 - 1)."""
    p, _ = depth_ratios(layer, depth)
    zigzag = 0.1 * ((jnp.arange(width) + 1) % 3 - 1)
    return p * (1.0 - jnp.linspace(0.0, 1.0, width)) + zigzag


def shifted_share(layer: Layer, depth: int, width: int) -> Float[Array, "D"]:
    """Channel mix that interpolates by the shifted token's share: 1 - i^q."""
    return 1.0 - own_share(layer, depth, width)


def own_share(layer: Layer, depth: int, width: int) -> Float[Array, "D"]:
    """Channel mix that interpolates by the token's own share: i^q."""
    _, q = depth_ratios(layer, depth)
    return channel_power(width, q)


def unit_scale(layer: Layer, depth: int) -> Float[Array, ""]:
    del layer, depth
    return jnp.float32(1.0)


def growing_scale(layer: Layer, depth: int) -> Float[Array, ""]:
    """((1 + layer) / depth)^0.7."""
    return ((1.0 + jnp.asarray(layer, jnp.float32)) / depth) ** 0.7
