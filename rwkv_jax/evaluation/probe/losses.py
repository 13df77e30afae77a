"""The two losses of a linear probe, as functions of the scores, each with its derivative.

Scores are [..., C, n], classes before rows: a sum over classes then runs over whole vectors of
rows. Both losses are convex in the scores.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

# scores [..., C, n] and targets -> losses [..., n] and residuals [..., C, n]
Loss = Callable[[Array, Array], tuple[Array, Array]]


def softmax_loss(
    scores: Float32[Array, "*L C n"], labels: Int32[Array, " n"]
) -> tuple[Float32[Array, "*L n"], Float32[Array, "*L C n"]]:
    """Cross-entropy of one right class a row; the residual is softmax minus one-hot.

    Computed from the differences d_j = s_j - s_y to the right class's score, as
    log(1 + sum_{j != y} exp d_j): a row that is nearly fitted has a loss of 1e-6 with six right
    digits, where -log softmax would have none in float32.

    Args:
      scores: of every class.
      labels: the right class.
    """
    right = labels == jnp.arange(scores.shape[-2])[:, None]  # [C, n]
    own = jnp.sum(jnp.where(right, scores, 0), axis=-2, keepdims=True)
    difference = jnp.where(right, -jnp.inf, scores - own)
    shift = jnp.maximum(jnp.max(difference, axis=-2, keepdims=True), 0)
    others = jnp.exp(difference - shift)  # 0 for the right class
    total = jnp.sum(others, axis=-2, keepdims=True)
    one = jnp.exp(-shift)
    losses = shift + jnp.log1p((one - 1) + total)
    residuals = jnp.where(right, -total, others) / (one + total)
    return jnp.squeeze(losses, -2), residuals


def sigmoid_loss(
    scores: Float32[Array, "*L C n"], targets: Float32[Array, "C n"]
) -> tuple[Float32[Array, "*L n"], Float32[Array, "*L C n"]]:
    """Binary cross-entropy, summed over independent classes.

    Args:
      scores: of every class.
      targets: 1 where a class is there, 0 where it is not, NaN where that is unknown (no loss).
    """
    known = ~jnp.isnan(targets)
    sign = jnp.where(known, 1 - 2 * targets, 0)  # -1 where the class is there
    margin = sign * scores
    losses = jnp.where(known, jax.nn.softplus(margin), 0)
    return losses.sum(axis=-2), sign * jax.nn.sigmoid(margin)
