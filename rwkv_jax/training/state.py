"""All that a run needs beside its data to go on: one pytree."""

import dataclasses
from typing import Any

import jax
import optax
from jaxtyping import Array, Int

Params = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Holds no random key: every step's key is folded from the run's seed and `step`.

    Attributes:
        step: updates done so far, int32 scalar.
        params: nested dict of float32 arrays.
        opt_state: optax's.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
