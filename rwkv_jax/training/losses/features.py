"""What the losses do with features: normalise, compare."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def l2_normalise(features: Float[Array, "B D"]) -> Float[Array, "B D"]:
    """Rows of length 1, in float32; a row of zeros stays zeros, with finite gradients."""
    features = features.astype(jnp.float32)
    squared = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
    return features * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


def product(a: Float[Array, "I J"], b: Float[Array, "J K"]) -> Float[Array, "I K"]:
    """a @ b in float32 on every platform; accelerators would round to TF32 or bfloat16, and logits
    are up to 100 times the cosines."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def divide_gradient(features: Float[Array, "B D"], divisor: int) -> Float[Array, "B D"]:
    """The features as they are; what flows back through them is divided by `divisor`."""
    return features


def _divide_forward(features, divisor):
    return features, None


def _divide_backward(divisor, _, gradient):
    return (gradient / divisor,)


divide_gradient.defvjp(_divide_forward, _divide_backward)
