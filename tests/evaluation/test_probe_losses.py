"""The probe's losses by hand, beside float64, and at scores that overflow a careless one."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv_jax.evaluation.probe.losses import sigmoid_loss, softmax_loss


def test_softmax_by_hand():
    # two rows with three classes: scores (0, ln 2, ln 5) and (1, 1, 1)
    scores = jnp.array([[0.0, 1], [np.log(2), 1], [np.log(5), 1]])
    losses, residuals = jax.jit(softmax_loss)(scores, jnp.array([1, 2]))
    chex.assert_trees_all_close(losses, jnp.array([np.log(8 / 2), np.log(3)]), rtol=1e-6)
    expected = jnp.array([[1 / 8, 1 / 3], [2 / 8 - 1, 1 / 3], [5 / 8, 1 / 3 - 1]])
    chex.assert_trees_all_close(residuals, expected, rtol=1e-6)


def test_sigmoid_by_hand():
    # one row: there, not there, unknown
    scores = jnp.array([[np.log(3.0)], [0.0], [7.0]])
    losses, residuals = jax.jit(sigmoid_loss)(scores, jnp.array([[1.0], [0.0], [np.nan]]))
    chex.assert_trees_all_close(losses, jnp.array([np.log(4 / 3) + np.log(2)]), rtol=1e-6)
    chex.assert_trees_all_close(residuals, jnp.array([[-1 / 4], [1 / 2], [0.0]]), rtol=1e-6)


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4, 1e30])
def test_beside_float64(size):
    rng = np.random.default_rng(0)
    scores = (size * rng.normal(size=(5, 40))).astype(np.float32)
    labels = rng.integers(5, size=40)
    labels[:20] = scores[:, :20].argmax(axis=0)  # right: losses down to 0
    exact = scores.astype(np.float64) - scores[labels, np.arange(40)]
    top = exact.max(axis=0)
    expected = top + np.log(np.exp(exact - top).sum(axis=0))
    others = np.where(np.arange(5)[:, None] == labels, -np.inf, exact)
    near = np.log1p(np.exp(np.minimum(others, 0)).sum(axis=0))
    expected = np.where(top == 0, near, expected)
    losses, residuals = jax.jit(softmax_loss)(scores, labels)
    np.testing.assert_allclose(losses, expected, rtol=2e-5, atol=1e-37)
    assert np.isfinite(residuals).all()
    np.testing.assert_allclose(residuals.sum(axis=0), 0, atol=1e-6)

    targets = (rng.random((5, 40)) < 0.5).astype(np.float32)
    losses, residuals = jax.jit(sigmoid_loss)(scores, targets)
    margin = (1 - 2 * targets) * scores.astype(np.float64)
    np.testing.assert_allclose(losses, np.logaddexp(0, margin).sum(axis=0), rtol=2e-5)
    assert np.isfinite(residuals).all()


@pytest.mark.parametrize("loss", [softmax_loss, sigmoid_loss])
def test_residuals_are_the_gradient(loss):
    rng = np.random.default_rng(1)
    scores = jnp.array(rng.normal(size=(2, 4, 7)), jnp.float32)  # leading axes are kept apart
    targets = jnp.array(rng.integers(4, size=7))
    if loss is sigmoid_loss:
        targets = jnp.array(rng.integers(2, size=(4, 7)), jnp.float32)
    gradient = jax.jit(jax.grad(lambda s: loss(s, targets)[0].sum()))(scores)
    losses, residuals = jax.jit(loss)(scores, targets)
    chex.assert_shape(losses, (2, 7))
    chex.assert_trees_all_close(residuals, gradient, atol=1e-6)
