"""How much a linear classifier gets out of frozen picture features.

Multinomial logistic regression, by L-BFGS on all rows at once, on features that are standardised
by the training rows. The objective is scikit-learn's, divided by C * n:

    mean over rows of -log softmax(x W + b)[y]  +  penalty / 2 * |W|^2,        penalty = 1 / (C n)

with b not penalised. The penalty is the best on held-out training rows (Radford et al. 2021,
appendix A.3); the classifier is then fitted again on all of them.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int

from rwkv_jax.evaluation import metrics
from rwkv_jax.evaluation.config import LinearProbeConfig
from rwkv_jax.evaluation.features import EmbeddedSplit
from rwkv_jax.evaluation.figure import Figure

MAX_STEPS = 1000
TOLERANCE = 1e-6  # largest gradient entry at which a fit ends: near the noise of float32


class Classifier(NamedTuple):
    """W [D, classes] and b [classes], float32; scores are x W + b."""

    weights: Float32[Array, "D classes"]
    bias: Float32[Array, " classes"]


def _scores(classifier: Classifier, features: Float[Array, "n D"]) -> Float[Array, "n classes"]:
    # accelerators would round the operands to bfloat16 or TF32 without being told
    product = jnp.matmul(features, classifier.weights, precision=jax.lax.Precision.HIGHEST)
    return product + classifier.bias


def objective(
    classifier: Classifier,
    features: Float[Array, "n D"],
    labels: Int[Array, " n"],
    penalty: Float[Array, ""],
) -> Float[Array, ""]:
    """The penalised mean loss that the head of this file writes down."""
    losses = optax.softmax_cross_entropy_with_integer_labels(_scores(classifier, features), labels)
    return losses.mean() + penalty / 2 * (classifier.weights**2).sum()


@functools.partial(jax.jit, static_argnames="classes")
def fit(
    features: Float32[Array, "n D"],
    labels: Int[Array, " n"],
    penalties: Float32[Array, " K"],
    classes: int,
) -> Classifier:
    """One classifier a penalty: W [K, D, classes] and b [K, classes].

    Each starts from the one before it, so give the penalties from strong to weak: a strong one is
    quickly fitted, and a good start for the next.
    """

    def solve(start: Classifier, penalty: Float[Array, ""]) -> tuple[Classifier, Classifier]:
        optimizer = optax.lbfgs(memory_size=10)

        def loss(classifier: Classifier) -> Float[Array, ""]:
            return objective(classifier, features, labels, penalty)

        value_and_gradient = optax.value_and_grad_from_state(loss)

        def step(carry: tuple[Classifier, Any, Any, Any]) -> tuple[Classifier, Any, Any, Any]:
            classifier, state, steps, _ = carry
            value, gradient = value_and_gradient(classifier, state=state)
            updates, state = optimizer.update(
                gradient, state, classifier, value=value, grad=gradient, value_fn=loss
            )
            largest = jnp.max(jnp.array([jnp.abs(leaf).max() for leaf in gradient]))
            return optax.apply_updates(classifier, updates), state, steps + 1, largest

        def goes_on(carry: tuple[Classifier, Any, Any, Any]) -> Any:
            _, _, steps, largest = carry
            return (steps < MAX_STEPS) & (largest >= TOLERANCE)

        first = (start, optimizer.init(start), jnp.int32(0), jnp.float32(jnp.inf))
        classifier, *_ = jax.lax.while_loop(goes_on, step, first)
        return classifier, classifier

    zeros = Classifier(jnp.zeros((features.shape[1], classes)), jnp.zeros(classes))
    _, classifiers = jax.lax.scan(solve, zeros, penalties)
    return classifiers


def standardise(
    train: Float[np.ndarray, "n D"], *others: Float[np.ndarray, "m D"]
) -> list[Float32[np.ndarray, "_ D"]]:
    """Each array with the mean of `train` taken off and divided by its standard deviation (1 where
    that is 0).
    """
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1)
    return [((each - mean) / deviation).astype(np.float32) for each in (train, *others)]


def predict(
    train: Float[np.ndarray, "n D"],
    labels: Int[np.ndarray, " n"],
    test: Float[np.ndarray, "m D"],
    penalties: Sequence[float],
    classes: int,
) -> Float32[np.ndarray, "K m classes"]:
    """Scores of the test rows by one classifier a penalty, fitted on `train`.

    A class that has no training row scores -inf: its bias would otherwise wander off without end.
    """
    train, test = standardise(train, test)
    present, compact = np.unique(labels, return_inverse=True)
    fitted = fit(*jax.device_put((train, compact, np.asarray(penalties, np.float32))), len(present))
    scores = np.full((len(penalties), len(test), classes), -np.inf, np.float32)
    scores[:, :, present] = jax.vmap(_scores, in_axes=(0, None))(fitted, jax.device_put(test))
    return scores


def choose_penalty(
    features: Float[np.ndarray, "n D"],
    labels: Int[np.ndarray, " n"],
    config: LinearProbeConfig,
    classes: int,
) -> float:
    """The penalty that is best on a held-out share of the rows; the strongest of equals."""
    order = np.random.default_rng(config.seed).permutation(len(labels))
    held_out, rest = np.split(order, [max(1, round(config.validation_share * len(order)))])
    penalties = sorted(config.penalties, reverse=True)
    scores = predict(features[rest], labels[rest], features[held_out], penalties, classes)
    accuracies = [metrics.top_k_accuracy(each, labels[held_out], 1) for each in scores]
    return penalties[int(np.argmax(accuracies))]


def linear_probe(
    train: EmbeddedSplit, test: EmbeddedSplit, config: LinearProbeConfig
) -> Iterator[Figure]:
    """Figures "linear_probe/SPLIT/LABEL/top_1" and ".../mean_per_class".

    Chance is to answer the commonest class of the training pictures always.

    Raises:
      ValueError: the dataset has no such label, or too few pictures have it.
    """
    labels, test_labels = train.label(config.label), test.label(config.label)
    rows, test_rows = np.flatnonzero(labels >= 0), np.flatnonzero(test_labels >= 0)
    if len(rows) < 2 or not len(test_rows):
        raise ValueError(
            f"a linear probe of {config.label!r} needs pictures that have it: "
            f"{train.name} has {len(rows)}, {test.name} {len(test_rows)}"
        )
    if len(rows) > config.max_train:
        drawn = np.random.default_rng(config.seed).choice(len(rows), config.max_train, False)
        rows = rows[np.sort(drawn)]
    labels, test_labels = labels[rows], test_labels[test_rows]
    classes = len(train.class_names[config.label])

    penalty = choose_penalty(train.features[rows], labels, config, classes)
    (scores,) = predict(train.features[rows], labels, test.features[test_rows], [penalty], classes)
    place = metrics.label_rank(scores, test_labels)
    commonest = np.bincount(labels).argmax()
    yield Figure(
        f"{config.name}/top_1",
        metrics.recall_at_k(place, 1),
        float(np.mean(test_labels == commonest)),
    )
    yield Figure(
        f"{config.name}/mean_per_class",
        metrics.mean_per_class_accuracy(place == 1, test_labels),
        1 / len(np.unique(test_labels)),
    )
