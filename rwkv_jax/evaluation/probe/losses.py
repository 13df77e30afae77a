"""The two losses of a linear probe, as functions of the scores; each gives its derivative too.

Scores are [..., C, n], classes before rows, so that sums over classes run over whole vectors of
rows. Both losses are convex in the scores.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

# scores [..., C, n], targets [C, n] -> losses [..., n], residuals [..., C, n]
Loss = Callable[
    [Float32[Array, "*L C n"], Float32[Array, "C n"]],
    tuple[Float32[Array, "*L n"], Float32[Array, "*L C n"]],
]


def softmax_loss(
    scores: Float32[Array, "*L C n"], targets: Float32[Array, "C n"]
) -> tuple[Float32[Array, "*L n"], Float32[Array, "*L C n"]]:
    """Cross-entropy of one right class a row, and its derivative by the scores, p - y.

    Computed from the differences d_j = s_j - s_y to the right class's score, as
    log(1 + sum_{j != y} exp d_j): a row that is nearly fitted has a loss of 1e-6 with six right
    digits, where -log softmax would have none in float32.

    Args:
      scores: of every class.
      targets: 1 for the right class, 0 for the others.
    """
    own = jnp.sum(scores * targets, axis=-2, keepdims=True)
    difference = jnp.where(targets > 0, -jnp.inf, scores - own)
    shift = jnp.maximum(jnp.max(difference, axis=-2, keepdims=True), 0)
    others = jnp.exp(difference - shift)  # 0 for the right class
    total = jnp.sum(others, axis=-2, keepdims=True)
    right = jnp.exp(-shift)
    losses = shift + jnp.log1p((right - 1) + total)
    residuals = jnp.where(targets > 0, -total, others) / (right + total)
    return jnp.squeeze(losses, -2), residuals


def sigmoid_loss(
    scores: Float32[Array, "*L C n"], targets: Float[Array, "C n"]
) -> tuple[Float32[Array, "*L n"], Float32[Array, "*L C n"]]:
    """Binary cross-entropy summed over independent classes, and its derivative by the scores.

    Args:
      scores: of every class.
      targets: 1 where the class is there, 0 where it is not, NaN where that is unknown (no loss).
    """
    sign = 1 - 2 * targets  # -1 where the class is there
    known = ~jnp.isnan(targets)
    margin = jnp.where(known, sign, 0) * scores
    losses = jnp.where(known, jax.nn.softplus(margin), 0)
    residuals = jnp.where(known, sign, 0) * jax.nn.sigmoid(margin)
    return losses.sum(axis=-2), residuals
