"""Modules whose parameters let every term be seen: initial ones are often 0."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def with_random_values(make: Callable[[], nnx.Module]) -> nnx.Module:
    """What `make` makes, with other values."""
    graphdef, state = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(0)

    def fill(leaf):
        return jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype)

    return nnx.merge(graphdef, jax.tree.map(fill, state))
