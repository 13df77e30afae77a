"""The schedule at its corners and AdamW's first steps by hand."""

import dataclasses

import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rwkv_jax.training.config import CheckpointConfig, OptimizerConfig
from rwkv_jax.training.optimizer import beta1_schedule, learning_rate_schedule, make_optimizer

CONFIG = OptimizerConfig()


def test_learning_rate_at_its_corners():
    rate = learning_rate_schedule(CONFIG, 1000)
    at = [float(rate(step)) for step in (0, 50, 100, 550, 1000)]
    # lr/25; halfway up (lr/25 + lr)/2; lr; halfway down; lr/25e4
    np.testing.assert_allclose(at, [4e-5, 5.2e-4, 1e-3, 5.00002e-4, 4e-9], rtol=1e-3)


def test_beta1_goes_against_the_rate():
    beta1 = beta1_schedule(CONFIG, 1000)
    at = [float(beta1(step)) for step in (0, 50, 100, 550, 1000)]
    np.testing.assert_allclose(at, [0.95, 0.90, 0.85, 0.90, 0.95], rtol=1e-5)


def test_first_update_by_hand():
    # Adam's first step is -rate * sign(g) whatever beta is; decay takes rate * 0.2 * p beside it.
    optimizer = make_optimizer(CONFIG, 1000)
    params = {"p": jnp.asarray([2.0, -1.0])}
    state = optimizer.init(params)
    updates, _ = optimizer.update({"p": jnp.asarray([0.5, -0.25])}, state, params)
    expected = {"p": -4e-5 * (np.asarray([1.0, -1.0]) + 0.2 * np.asarray([2.0, -1.0]))}
    chex.assert_trees_all_close(updates, expected, rtol=1e-5)


def test_gradients_are_clipped_to_the_global_norm():
    # With a large epsilon Adam's step is linear in the (clipped) gradient: g / (|g| + eps).
    config = dataclasses.replace(CONFIG, epsilon=1e3, weight_decay=0.0)
    params = {"p": jnp.zeros(2)}
    optimizer = make_optimizer(config, 1000)
    small, _ = optimizer.update({"p": jnp.asarray([0.6, 0.8])}, optimizer.init(params), params)
    large, _ = optimizer.update({"p": jnp.asarray([60.0, 80.0])}, optimizer.init(params), params)
    chex.assert_trees_all_close(small, large, rtol=1e-5)
    assert float(optax.tree.norm(large)) > 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peak_learning_rate", 0.0),
        ("warmup_share", 1.0),
        ("beta2", 1.0),
        ("clip_norm", -1.0),
        ("weight_decay", -0.1),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=rf"optimizer\.{field} = {value}"):
        OptimizerConfig(**{field: value})


def test_checkpoint_interval_is_checked():
    with pytest.raises(ValueError, match=r"checkpoint\.every = 0"):
        CheckpointConfig(every=0)
