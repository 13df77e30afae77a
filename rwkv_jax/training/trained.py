"""Which parameters are trained: gradients are taken of them alone.

A tree of some of the parameters has None, which JAX takes for a node without leaves, in the place
of the others.
"""

import jax
import jax.numpy as jnp
import optax

from rwkv_jax.training.config import OptimizerConfig
from rwkv_jax.training.paths import Mask, found_in, map_paths
from rwkv_jax.training.state import Params


def factor(config: OptimizerConfig, path: str) -> float:
    """The factor on a parameter's rate; 0 where it is not trained."""
    if path.split("/")[0] == config.frozen:
        return 0.0
    place = found_in([pattern for pattern, _ in config.learning_rate_multipliers], path)
    return 1.0 if place is None else config.learning_rate_multipliers[place][1]


def trained_mask(config: OptimizerConfig, params: Params) -> Mask:
    """True where a parameter is trained: not of the frozen tower, nor with a factor of 0."""
    return map_paths(lambda path: factor(config, path) != 0, params)


def split(config: OptimizerConfig, params: Params) -> tuple[Params, Params]:
    """(what is trained, what is frozen)."""
    mask = trained_mask(config, params)
    trained = jax.tree.map(lambda leaf, is_trained: leaf if is_trained else None, params, mask)
    frozen = jax.tree.map(lambda leaf, is_trained: None if is_trained else leaf, params, mask)
    return trained, frozen


def join(trained: Params, frozen: Params) -> Params:
    """Undoes `split`."""
    return jax.tree.map(
        lambda mine, other: other if mine is None else mine,
        trained,
        frozen,
        is_leaf=lambda leaf: leaf is None,
    )


def with_zeros(gradients: Params, params: Params) -> Params:
    """The gradients of all parameters, 0 where `gradients` has None."""
    return jax.tree.map(
        lambda leaf, gradient: jnp.zeros_like(leaf) if gradient is None else gradient,
        params,
        gradients,
    )


def apply_updates(config: OptimizerConfig, params: Params, updates: Params) -> Params:
    """`optax.apply_updates` that hands on what is not trained as it is, bit for bit."""
    return jax.tree.map(
        lambda old, new, is_trained: new if is_trained else old,
        params,
        optax.apply_updates(params, updates),
        trained_mask(config, params),
    )
