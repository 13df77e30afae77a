"""An average of the parameters over the run, which evaluators may take instead of the last ones."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rwkv_jax.training.state import Params


def ema_decay_at(decay: float, step: Int[Array, ""]) -> Float[Array, ""]:
    """min(decay, (1 + step) / (10 + step)), float32: a young average forgets its random start.

    Source: `num_updates` of TensorFlow's tf.train.ExponentialMovingAverage. The warm-up ends where
    (1 + step) / (10 + step) reaches `decay`: after 8,990 updates for 0.999.

    Args:
        step: updates done before this one.
    """
    t = step.astype(jnp.float32)
    return jnp.minimum(jnp.float32(decay), (1 + t) / (10 + t))


def next_ema(
    ema: Params | None, params: Params, decay: float | None, step: Int[Array, ""]
) -> Params | None:
    """d * ema + (1 - d) * params with d = ema_decay_at(decay, step); None where `decay` is.

    Written as a step towards `params`, so that what equals them stays bit-equal.

    Args:
        params: after the update.

    Raises:
        ValueError: a decay, and no average that it could be of.
    """
    if decay is None:
        return None
    share = 1 - ema_decay_at(decay, step)
    return jax.tree.map(lambda mean, new: mean + share * (new - mean), ema, params)
