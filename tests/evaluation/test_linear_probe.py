"""The linear probe beside scikit-learn on real pictures: its 8 x 8 digits."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from rwkv_jax.evaluation import linear_probe
from rwkv_jax.evaluation.config import LinearProbeConfig
from rwkv_jax.evaluation.features import EmbeddedSplit

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3)
TRAIN = 1200


@pytest.fixture(scope="module")
def digits():
    features, labels = load_digits(return_X_y=True)
    return features.astype(np.float32), labels


def as_split(features, labels, name="digits/all"):
    return EmbeddedSplit(
        name=name,
        content_hash="",
        text_kinds=(),
        class_names={"digit": tuple("0123456789")},
        features=features,
        index=np.arange(len(labels)),
        keys=tuple(map(str, range(len(labels)))),
        texts=({},) * len(labels),
        labels=tuple({"digit": int(label)} for label in labels),
        skipped=0,
    )


def test_agrees_with_scikit_learn(digits):
    features, labels = digits
    train, test = features[:TRAIN], features[TRAIN:]
    scores = linear_probe.predict(train, labels[:TRAIN], test, PENALTIES, 10)
    train, test = linear_probe.standardise(train, test)
    for ours, penalty in zip(scores, PENALTIES, strict=True):
        theirs = LogisticRegression(C=1 / (penalty * TRAIN), max_iter=5000, tol=1e-9)
        theirs.fit(train.astype(np.float64), labels[:TRAIN])
        accuracy = np.mean(ours.argmax(axis=1) == labels[TRAIN:])
        assert accuracy == pytest.approx(theirs.score(test, labels[TRAIN:]), abs=1e-3)
        # scores may differ by a number a row, which changes no probability
        expected = theirs.decision_function(test)
        chex.assert_trees_all_close(
            ours - ours.mean(axis=1, keepdims=True),
            (expected - expected.mean(axis=1, keepdims=True)).astype(np.float32),
            atol=0.02,
        )


def test_objective_by_hand():
    classifier = linear_probe.Classifier(jnp.array([[1.0, -1.0]]), jnp.array([0.5, 0.0]))
    loss = linear_probe.objective(classifier, jnp.array([[2.0]]), jnp.array([1]), 0.1)
    # scores 2.5 and -2, -log softmax of the second is log(1 + e^4.5), and 0.1 / 2 * (1 + 1)
    assert loss == pytest.approx(np.log1p(np.exp(4.5)) + 0.1)


def test_figures_and_chosen_penalty(digits):
    features, labels = digits
    config = LinearProbeConfig(
        "digits", "train", "test", "digit", penalties=(1e4, *PENALTIES), max_train=600
    )
    train = as_split(features[:TRAIN], labels[:TRAIN])
    test = as_split(features[TRAIN:], labels[TRAIN:])
    figures = {f.name: f for f in linear_probe.linear_probe(train, test, config)}
    assert figures.keys() == {
        "linear_probe/test/digit/top_1",
        "linear_probe/test/digit/mean_per_class",
    }
    assert figures["linear_probe/test/digit/top_1"].value > 0.85
    assert figures["linear_probe/test/digit/mean_per_class"].chance == pytest.approx(0.1)
    # a penalty of 10,000 leaves no weights: the search has something to choose
    chosen = linear_probe.choose_penalty(features[:600], labels[:600], config, 10)
    assert chosen < 1e4


def test_class_without_training_rows_is_never_predicted(digits):
    features, labels = digits
    seen = labels[:600] != 3
    rows, row_labels = features[:600][seen], labels[:600][seen]
    (scores,) = linear_probe.predict(rows, row_labels, features[600:700], [0.1], 10)
    assert np.isneginf(scores[:, 3]).all()
    assert np.isfinite(np.delete(scores, 3, axis=1)).all()


def test_unknown_label(digits):
    split = as_split(digits[0][:20], digits[1][:20])
    config = LinearProbeConfig("digits", "train", "test", "colour")
    with pytest.raises(ValueError, match=r"digits/all has no label 'colour'.*digit"):
        list(linear_probe.linear_probe(split, split, config))
