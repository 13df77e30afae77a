"""The contrastive loss over the global batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def l2_normalise(features: Float[Array, "B D"]) -> Float[Array, "B D"]:
    """Rows of length 1; a row of zeros stays zeros, with finite gradients."""
    squared = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
    return features * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


def same_concept(concept: Int[Array, "B"]) -> Bool[Array, "B B"]:
    """Which pairs of a batch show the same thing; a negative concept is only itself.

    Example: concepts [7, 7, -1, -1] give [[1,1,0,0], [1,1,0,0], [0,0,1,0], [0,0,0,1]].
    """
    known = (concept >= 0)[:, None]
    return ((concept[:, None] == concept[None, :]) & known) | jnp.eye(len(concept), dtype=bool)


def contrastive_loss(
    image_features: Float[Array, "B D"],
    text_features: Float[Array, "B D"],
    scale: Float[Array, ""],
    positives: Bool[Array, "B B"] | None = None,
) -> Float[Array, ""]:
    """Symmetric cross entropy in which a row may have several right answers.

    CLIP's loss (Radford et al. 2021, figure 3) where `positives` is None: pair i is the one right
    answer for image i and for text i. With `positives`, the target of a row is uniform over its
    positives (the "out" form of SupCon, Khosla et al. 2020, equation 2). Under jit with the batch
    sharded over devices this is the loss over the global batch: B is global.

    Args:
        image_features: before L2 normalisation, any float dtype; computed in float32.
        text_features: likewise.
        scale: exponentiated logit scale.
        positives: symmetric, diagonal True.

    Returns:
        A float32 scalar, the mean of both directions. Two orthogonal pairs at scale s give
        log(1 + exp(-s)).
    """
    image = l2_normalise(image_features.astype(jnp.float32))
    text = l2_normalise(text_features.astype(jnp.float32))
    logits = scale * jnp.einsum("id,td->it", image, text, precision=jax.lax.Precision.HIGHEST)
    if positives is None:
        target = jnp.eye(len(logits), dtype=jnp.float32)
    else:
        target = positives / jnp.sum(positives, axis=1, keepdims=True)
    image_to_text = -jnp.sum(target * jax.nn.log_softmax(logits, axis=1)) / len(logits)
    text_to_image = -jnp.sum(target * jax.nn.log_softmax(logits.T, axis=1)) / len(logits)
    return (image_to_text + text_to_image) / 2
