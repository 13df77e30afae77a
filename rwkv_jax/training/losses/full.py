"""The losses as they are defined, with all B x B logits at once: what the rings are judged by."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rwkv_jax.training.losses.features import l2_normalise, product
from rwkv_jax.training.losses.labels import same_label


class PairLosses(NamedTuple):
    """What every loss here returns.

    Attributes:
        mean: the loss, a float32 scalar.
        of_pairs: each pair's part, whose mean it is; to look at, without a gradient.
    """

    mean: Float[Array, ""]
    of_pairs: Float[Array, " B"]


def mean_of(losses: Float[Array, " B"]) -> PairLosses:
    """The mean of each pair's loss, and the losses without a gradient."""
    return PairLosses(jnp.mean(losses), jax.lax.stop_gradient(losses))


def full_softmax(
    image_features: Float[Array, "B D"],
    text_features: Float[Array, "B D"],
    scale: Float[Array, ""],
    labels: Int[Array, "B"],
) -> PairLosses:
    """Symmetric cross entropy in which a row may have several right answers.

    CLIP's loss (Radford et al. 2021, figure 3) where every label is another: pair i is the one
    right answer for image i and for text i. Else the target of a row is uniform over the pairs of
    its label (the "out" form of SupCon, Khosla et al. 2020, equation 2). Under jit with the batch
    sharded over devices this is the loss over the global batch: B is global.

    Args:
        image_features: before L2 normalisation, any float dtype; computed in float32.
        text_features: likewise.
        scale: exponentiated logit scale.
        labels: of `pair_labels`.

    Returns:
        The mean of both directions; a pair's is that of its image and of its text. Two orthogonal
        pairs at scale s give log(1 + exp(-s)).
    """
    logits = scale * product(l2_normalise(image_features), l2_normalise(text_features).T)
    positives = same_label(labels, labels)
    target = positives / jnp.sum(positives, axis=1, keepdims=True)
    image_to_text = -jnp.sum(target * jax.nn.log_softmax(logits, axis=1), axis=1)
    text_to_image = -jnp.sum(target * jax.nn.log_softmax(logits.T, axis=1), axis=1)
    return mean_of((image_to_text + text_to_image) / 2)


def full_sigmoid(
    image_features: Float[Array, "B D"],
    text_features: Float[Array, "B D"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    labels: Int[Array, "B"],
) -> PairLosses:
    """Every image and text is asked on its own whether they belong together; summed over texts.

    Source: SigLIP (Zhai et al. 2023, arXiv 2303.15343), equation 1 and algorithm 1. The sum over
    all B x B is divided by B, not by B x B. Several pairs of one label are all right answers.

    Args:
        image_features: before L2 normalisation, any float dtype; computed in float32.
        text_features: likewise.
        scale: exponentiated logit scale.
        bias: added to every logit.
        labels: of `pair_labels`.

    Returns:
        The mean over images; a pair's is its image's. Two orthogonal pairs at scale s and bias 0
        give log(1 + exp(-s)) + log(2).
    """
    logits = scale * product(l2_normalise(image_features), l2_normalise(text_features).T) + bias
    wrong_way = jnp.where(same_label(labels, labels), -logits, logits)
    return mean_of(jnp.sum(jax.nn.softplus(wrong_way), axis=1))
