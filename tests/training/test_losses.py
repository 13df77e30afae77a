"""The contrastive losses on one device: by hand, by float64 numpy, in extremes, and in memory."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses_float64 import sigmoid_float64, slopes, softmax_float64

from rwkv_jax.training.config import LossConfig
from rwkv_jax.training.losses import (
    check_loss_fits,
    full_sigmoid,
    full_softmax,
    make_loss,
    pair_labels,
    ring_sigmoid,
    ring_softmax,
)
from rwkv_jax.training.losses.features import l2_normalise
from rwkv_jax.training.update import loss_by_kind


def mean(loss):
    return lambda *arguments: loss(*arguments).mean


SOFTMAX = {
    "full": mean(full_softmax),
    "ring": mean(functools.partial(ring_softmax, chunk=2)),
}
SIGMOID = {
    "full": mean(full_sigmoid),
    "ring": mean(functools.partial(ring_sigmoid, chunk=2)),
}
FORMS = ("full", "ring")
LABELS = np.array([0, 1, 0, 2, 3, 2])


@functools.cache
def compiled(loss, arguments: int):
    return jax.jit(jax.value_and_grad(loss, argnums=tuple(range(arguments))))


def value_and_gradients(loss, *arguments):
    """Of every argument but the labels, compiled once a shape: what a training step runs."""
    *numbers, labels = arguments
    numbers = [jnp.asarray(x, jnp.float32) for x in numbers]
    return compiled(loss, len(numbers))(*numbers, jnp.asarray(labels, jnp.int32))


@pytest.mark.parametrize("form", FORMS)
def test_two_orthogonal_pairs_by_hand(form: str):
    # logits are [[s, 0], [0, s]]: each row's cross entropy is log(e^s + 1) - s = log(1 + e^-s)
    features, labels = 3.0 * jnp.eye(2), jnp.arange(2)
    loss = SOFTMAX[form](features, features, jnp.asarray(2.0), labels)
    chex.assert_trees_all_close(loss, math.log(1 + math.exp(-2.0)), rtol=1e-6)
    # a row of a sigmoid: the right pair log(1 + e^-(s + b)), the wrong one log(1 + e^b)
    loss = SIGMOID[form](features, features, jnp.asarray(2.0), jnp.asarray(-1.0), labels)
    chex.assert_trees_all_close(loss, 2 * math.log(1 + math.exp(-1.0)), rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_two_pictures_of_one_concept_by_hand(form: str):
    features, same = jnp.eye(2), jnp.zeros(2, jnp.int32)
    # both texts are right for both pictures: mean over both of log(e^s + 1) - logit
    loss = SOFTMAX[form](features, features, jnp.asarray(2.0), same)
    chex.assert_trees_all_close(loss, math.log(math.exp(2.0) + 1) - 1.0, rtol=1e-6)
    # no wrong pair is left: log(1 + e^-s) + log(1 + e^0)
    loss = SIGMOID[form](features, features, jnp.asarray(2.0), jnp.asarray(0.0), same)
    chex.assert_trees_all_close(loss, math.log(1 + math.exp(-2.0)) + math.log(2), rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_losses_of_pairs_by_hand(form: str):
    """Images (1,0), (0,1); texts both (1,0); scale 2: logits [[2, 2], [0, 0]]."""
    images, texts = jnp.eye(2), jnp.asarray([[1.0, 0.0], [1.0, 0.0]])
    config = LossConfig(form=form, chunk=1)
    mean_loss, of_pairs = make_loss(config)(
        images, texts, {"logit_scale": jnp.log(2.0)}, jnp.arange(2)
    )
    # rows log 2 each; columns log(e^2 + 1) - 2 and log(e^2 + 1) - 0
    column = math.log(math.exp(2) + 1)
    expected = [(math.log(2) + column - 2) / 2, (math.log(2) + column) / 2]
    np.testing.assert_allclose(of_pairs, expected, rtol=1e-6)
    np.testing.assert_allclose(mean_loss, np.mean(expected), rtol=1e-6)
    sigmoid = make_loss(LossConfig("sigmoid", form=form, chunk=1))
    logits = {"logit_scale": jnp.log(2.0), "logit_bias": jnp.asarray(0.0)}
    # a row: the right text log(1 + e^-z), the wrong one log(1 + e^z)
    expected = [math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2)), 2 * math.log(2)]
    np.testing.assert_allclose(
        sigmoid(images, texts, logits, jnp.arange(2)).of_pairs, expected, rtol=1e-6
    )


def test_losses_by_kind_of_text_by_hand():
    found = loss_by_kind(jnp.asarray([1.0, 3.0, 5.0]), jnp.asarray([0, 0, 1]), ("a", "b", "c"))
    assert found["train/loss/a"] == 2
    assert found["train/loss/b"] == 5
    assert math.isnan(found["train/loss/c"])
    np.testing.assert_allclose(found["train/text_share/a"], 2 / 3)
    assert found["train/text_share/c"] == 0


def test_labels_by_hand():
    concept = jnp.asarray([7, 0, 7, 0, -1, -1])
    np.testing.assert_array_equal(pair_labels(concept, "concept"), [7, 0, 7, 0, -5, -6])
    np.testing.assert_array_equal(pair_labels(concept, "pair"), np.arange(6))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_value_and_every_gradient_against_float64(form: str, scale: float):
    random = np.random.default_rng(0)
    image, text = random.standard_normal((2, 6, 5))
    for loss, judge, logits in (
        (SOFTMAX[form], softmax_float64, (scale,)),
        (SIGMOID[form], sigmoid_float64, (scale, -3.0)),
    ):
        arguments = (image, text, *map(np.asarray, logits), LABELS)
        value, gradients = value_and_gradients(loss, *arguments)
        np.testing.assert_allclose(value, judge(*arguments), rtol=1e-6 * max(scale / 10, 1))
        for gradient, slope in zip(gradients, slopes(judge, *arguments), strict=True):
            # Logits of size 100 are rounded by 4e-6, and so is what comes of them.
            largest = np.max(np.abs(slope))
            np.testing.assert_allclose(gradient, slope, atol=1e-5 * largest * max(scale / 10, 1))


@pytest.mark.parametrize(
    "features",
    [
        np.zeros((6, 5)),  # no direction at all
        np.ones((6, 5)),  # all the same
        np.diag([1e15, -1e15, 1e-15, 1.0, 1e3, 1.0])[:, :5],
        -np.eye(6, 5),
    ],
    ids=["zeros", "same", "large and small", "rows of zeros"],
)
@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_extremes_stay_finite_and_the_ring_agrees(features: np.ndarray, scale: float):
    text = features[::-1].copy()
    for forms, logits in ((SOFTMAX, (scale,)), (SIGMOID, (scale, -10.0))):
        arguments = (features, text, *logits, LABELS)
        full, ring = (value_and_gradients(forms[form], *arguments) for form in FORMS)
        chex.assert_tree_all_finite(ring)
        # Logits of size `scale` are rounded by 6e-8 of it.
        chex.assert_trees_all_close(ring, full, rtol=1e-5, atol=1e-5 + 2e-7 * scale)


def test_small_features_have_length_1_too():
    features = l2_normalise(jnp.asarray([[3e-6, 4e-6], [0, 0]]))
    np.testing.assert_allclose(features, [[0.6, 0.8], [0, 0]], rtol=1e-6)


def test_zero_features_keep_finite_gradients():
    gradient = jax.grad(lambda x: jnp.sum(l2_normalise(x)))(jnp.zeros((2, 3)))
    chex.assert_tree_all_finite(gradient)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_ring_of_one_device_needs_little_memory(kind: str):
    """32,768 pairs, compiled and not run: under a tenth of what all logits at once take."""
    features = jax.ShapeDtypeStruct((32_768, 64), jnp.float32)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    labels = jax.ShapeDtypeStruct((32_768,), jnp.int32)
    logits = {"logit_scale": number, "logit_bias": number}
    bytes_of = {}
    for form in FORMS:
        loss = make_loss(LossConfig(kind=kind, form=form))
        program = jax.jit(jax.value_and_grad(mean(loss), argnums=(0, 1, 2)))
        compiled = program.lower(features, features, logits, labels).compile()
        bytes_of[form] = compiled.memory_analysis().temp_size_in_bytes
    assert bytes_of["full"] > 4 * 32_768**2
    assert bytes_of["ring"] < bytes_of["full"] / 10


def test_the_authors_division_leaves_the_loss_and_the_logits_alone():
    random = np.random.default_rng(1)
    image, text = random.standard_normal((2, 4, 3)).astype(np.float32)
    logits = {"logit_scale": jnp.asarray(1.0), "logit_bias": jnp.asarray(-1.0)}
    ours, theirs = (
        jax.value_and_grad(
            mean(make_loss(LossConfig("sigmoid", authors_devices=n))), argnums=(0, 1, 2)
        )(image, text, logits, jnp.arange(4))
        for n in (1, 8)
    )
    eighth = jax.tree.map(lambda x: x / 8, ours[1][:2])
    chex.assert_trees_all_close(theirs, (ours[0], (*eighth, ours[1][2])), rtol=1e-6)


def test_a_chunk_that_does_not_divide_names_one_that_does():
    config = LossConfig(form="ring", chunk=256)
    check_loss_fits(config, 100)  # fewer pairs than a chunk: all at once
    check_loss_fits(config, 512)
    with pytest.raises(ValueError, match=r"loss\.chunk = 256 .* 300 pairs .* is 150"):
        check_loss_fits(config, 300)


@pytest.mark.parametrize(
    ("field", "value"), [("kind", "hinge"), ("form", "star"), ("chunk", 0), ("authors_devices", 0)]
)
def test_values_out_of_range_name_the_field(field: str, value):
    with pytest.raises(ValueError, match=rf"loss\.{field} = {value!r}"):
        LossConfig(**{field: value})
