"""All that a run needs beside its data to go on: one pytree."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from rwkv_jax.models.params import WhichParams

Params = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Holds no random key: every step's key is folded from the run's seed and `step`.

    Attributes:
        step: updates done so far, int32 scalar.
        params: nested dict of float32 arrays.
        opt_state: optax's.
        ema: the parameters' moving average, shaped as they are; None where none is kept.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    ema: Params | None = None

    def evaluated(self, which: WhichParams) -> Params:
        """The parameters that evaluators are to see.

        Raises:
            ValueError: the average is asked for, and none is kept.
        """
        params = self.params if which == "live" else self.ema
        if params is None:
            raise ValueError("there is no average to evaluate: set optimizer.ema_decay, say 0.999")
        return params


def begun_with(state: TrainState, params: Params, like: TrainState) -> TrainState:
    """`state` before the first update, with other parameters, as those of a weights folder.

    Args:
        params: of the same model; whole arrays, the same on every process.
        like: shapes and shardings of `state`.
    """
    host = jax.tree.map(np.asarray, params)
    placed = jax.device_put(host, jax.tree.map(lambda leaf: leaf.sharding, like.params))
    ema = None if state.ema is None else jax.tree.map(jnp.copy, placed)
    return dataclasses.replace(state, params=placed, ema=ema)


def first_state(
    params: Params, optimizer: optax.GradientTransformation, *, ema: bool
) -> TrainState:
    """Before the first update; an average, where one is kept, starts at the parameters."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
    )
