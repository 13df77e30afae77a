"""The contrastive loss against numbers worked out by hand and a float64 numpy loop."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv_jax.training.loss import contrastive_loss, l2_normalise, same_concept


def loss_float64(image, text, scale, positives):
    """The definition as loops, in float64."""
    image = image / np.linalg.norm(image, axis=1, keepdims=True)
    text = text / np.linalg.norm(text, axis=1, keepdims=True)
    logits = scale * image @ text.T
    total = 0.0
    for rows in (logits, logits.T):
        for i, row in enumerate(rows):
            log_sum = np.log(np.sum(np.exp(row - row.max()))) + row.max()
            own = np.flatnonzero(positives[i])
            total += np.mean([log_sum - row[j] for j in own])
    return total / (2 * len(logits))


def test_two_orthogonal_pairs_by_hand():
    # logits are [[s, 0], [0, s]]: each row's cross entropy is log(e^s + 1) - s = log(1 + e^-s)
    features = 3.0 * jnp.eye(2)
    loss = contrastive_loss(features, features, jnp.asarray(2.0))
    chex.assert_trees_all_close(loss, math.log(1 + math.exp(-2.0)), rtol=1e-6)


def test_two_pictures_of_one_concept_by_hand():
    # both texts are right for both pictures: mean over both of log(e^s + 1) - logit
    features = jnp.eye(2)
    both = jnp.ones((2, 2), bool)
    loss = contrastive_loss(features, features, jnp.asarray(2.0), both)
    chex.assert_trees_all_close(loss, math.log(math.exp(2.0) + 1) - 1.0, rtol=1e-6)


def test_same_concept_by_hand():
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(same_concept(jnp.asarray([7, 7, -1, -1])), expected)


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_value_and_gradient_against_float64(scale):
    random = np.random.default_rng(0)
    image, text = random.standard_normal((2, 6, 5))
    positives = np.asarray(same_concept(jnp.asarray([0, 1, 0, 2, -1, 2])))
    value, gradient = jax.value_and_grad(contrastive_loss)(
        jnp.asarray(image, jnp.float32),
        jnp.asarray(text, jnp.float32),
        jnp.asarray(scale, jnp.float32),
        jnp.asarray(positives),
    )
    np.testing.assert_allclose(value, loss_float64(image, text, scale, positives), rtol=1e-5)
    for at in ((0, 0), (3, 2), (5, 4)):  # central differences of the float64 loop
        step = np.zeros_like(image)
        step[at] = 1e-6
        difference = (
            loss_float64(image + step, text, scale, positives)
            - loss_float64(image - step, text, scale, positives)
        ) / 2e-6
        np.testing.assert_allclose(gradient[at], difference, rtol=2e-4, atol=1e-5)


def test_zero_features_keep_finite_gradients():
    gradient = jax.grad(lambda x: jnp.sum(l2_normalise(x)))(jnp.zeros((2, 3)))
    chex.assert_tree_all_finite(gradient)
