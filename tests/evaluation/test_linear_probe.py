"""The probe of a split, with its validation part, metrics and missing classes."""

import dataclasses

import numpy as np
import pytest
from sklearn.datasets import load_digits

from rwkv_jax.evaluation import linear_probe as room
from rwkv_jax.evaluation.config import LinearProbeConfig
from rwkv_jax.evaluation.features import EmbeddedSplit, unit_length
from rwkv_jax.evaluation.linear_probe import linear_probe, search_and_fit
from rwkv_jax.evaluation.probe.examples import Examples, examples_of
from rwkv_jax.evaluation.probe.judge import JUDGES

CONFIG = LinearProbeConfig("digits", "train", "test", "digit")


@pytest.fixture(scope="module")
def digits():
    features, labels = load_digits(return_X_y=True)
    return features.astype(np.float32), labels


def as_split(features, labels, class_names, name="digits/all"):
    return EmbeddedSplit(
        name=name,
        content_hash="",
        text_kinds=(),
        class_names=class_names,
        features=unit_length(features),
        index=np.arange(len(labels)),
        keys=tuple(map(str, range(len(labels)))),
        texts=({},) * len(labels),
        labels=tuple(labels),
        skipped=0,
        lengths=np.linalg.norm(features, axis=1),
    )


def digit_split(features, labels, **more):
    names = {"digit": tuple("0123456789")}
    return as_split(features, [{"digit": int(label)} for label in labels], names, **more)


def figures_of(figures):
    return {figure.name.removeprefix("linear_probe/test/digit/"): figure for figure in figures}


def test_figures(digits, capsys):
    features, labels = digits
    train, test = (
        digit_split(features[:500], labels[:500]),
        digit_split(features[500:], labels[500:]),
    )
    config = dataclasses.replace(CONFIG, metric="top_1_5", shots=(1, 4), shot_seeds=2)
    found = figures_of(linear_probe(train, test, config))
    names = ["top_1", "mean_per_class", "top_1_5"]
    names += [f"{k}_shot/top_1{end}" for k in (1, 4) for end in ("", "_std")]
    assert list(found) == names
    assert found["top_1"].value > 0.85
    assert found["top_1"].chance == np.mean(labels[500:] == np.bincount(labels[:500]).argmax())
    assert found["mean_per_class"].chance == pytest.approx(0.1)
    assert found["top_1"].value < found["top_1_5"].value <= (found["top_1"].value + 1) / 2
    assert 0.3 < found["1_shot/top_1"].value < found["4_shot/top_1"].value < found["top_1"].value
    assert "lambda" in capsys.readouterr().err


def test_deviation_of_the_draws_and_chance_among_the_classes_that_occur(digits, monkeypatch):
    features, labels = digits
    few = labels < 3
    monkeypatch.setattr(room, "few_shot", lambda *_, **__: {1: [0.5, 0.7]})
    train = digit_split(features[:200], labels[:200])
    test = digit_split(features[few][100:150], labels[few][100:150])
    config = dataclasses.replace(CONFIG, shots=(1,), shot_seeds=2)
    found = figures_of(linear_probe(train, test, config))
    assert found["1_shot/top_1_std"].value == pytest.approx(0.1 * 2**0.5)  # of a sample of two
    assert found["mean_per_class"].chance == pytest.approx(1 / 3)


def test_at_most_max_train_pictures_are_drawn_each_once(digits, monkeypatch):
    features, labels = digits
    drawn = []

    def watched(train, validation, *rest):
        drawn.extend(map(tuple, train.join(validation).features.round(3)))
        return search_and_fit(train, validation, *rest)

    monkeypatch.setattr(room, "search_and_fit", watched)
    split = digit_split(features[:200], labels[:200])
    list(linear_probe(split, split, dataclasses.replace(CONFIG, max_train=150)))
    assert len(drawn) == len(set(drawn)) == 150


def test_features_are_those_before_normalisation(digits):
    features, labels = digits
    examples = examples_of(digit_split(features[:50], labels[:50]), "digit")
    np.testing.assert_allclose(examples.features, features[:50], rtol=1e-6)


def test_validation_chooses_and_is_fitted_on(digits, monkeypatch):
    """The rows of the last fit are all rows; a validation part with wrong labels chooses badly."""
    features, labels = digits
    problems = []

    class Watched(room.Problem):
        def __init__(self, features, *rest):
            problems.append(len(features))
            super().__init__(features, *rest)

    monkeypatch.setattr(room, "Problem", Watched)
    train = Examples(features[:400], labels[:400])
    validation = Examples(features[400:500], labels[400:500])
    good = search_and_fit(train, validation, 10, JUDGES["accuracy"]).strength
    assert problems == [400, 500]
    # of labels that say always 1, the best rule says always 1: no weights at all
    ones = Examples(np.zeros_like(features[400:500]), np.ones(100, int))
    skewed = Examples(features[:400], np.where(np.arange(400) < 300, 1, labels[:400]))
    bad = search_and_fit(skewed, ones, 10, JUDGES["accuracy"]).strength
    assert bad == pytest.approx(1e6)
    assert 1e-6 <= good < 1e5


def test_class_without_rows_is_never_predicted(digits):
    """Digits are classes 0 to 3 and 5 to 10 of eleven: nothing is known of class 4."""
    features, labels = digits
    rows = Examples(features[:500], np.where(labels[:500] < 4, labels[:500], labels[:500] + 1))
    parts = rows.take(np.arange(400)), rows.take(np.arange(400, 500))
    found = search_and_fit(*parts, 11, JUDGES["accuracy"])
    scores = found.classifier.scores(features[600:700])
    assert np.isneginf(scores[:, 4]).all()
    assert np.isfinite(np.delete(scores, 4, axis=1)).all()
    predicted = scores.argmax(axis=1)
    assert np.mean(np.where(predicted < 4, predicted, predicted - 1) == labels[600:700]) > 0.8


def test_several_labels_a_picture(digits):
    features, labels = digits
    names = {"shapes": ("round", "even")}
    written = [
        {"round": int(label in (0, 6, 8, 9)), "even": -1 if i % 3 == 0 else int(label % 2 == 0)}
        for i, label in enumerate(labels[:700])
    ]
    train = as_split(features[:500], written[:500], names)
    test = as_split(features[500:700], written[500:], names)
    config = LinearProbeConfig("digits", "train", "test", "shapes", metric="map_11")
    (figure,) = linear_probe(train, test, config)
    assert figure.name == "linear_probe/test/shapes/map_11"
    assert figure.value > 0.9
    assert 0.4 < figure.chance < 0.5
    assert np.isnan(examples_of(train, "shapes").targets[0]).tolist() == [False, True]
    with pytest.raises(ValueError, match="several values a picture cannot have metric 'accuracy'"):
        list(linear_probe(train, test, dataclasses.replace(config, metric="accuracy")))


def test_what_cannot_be_probed(digits):
    split = digit_split(digits[0][:20], digits[1][:20])
    other = LinearProbeConfig("digits", "train", "test", "colour")
    with pytest.raises(ValueError, match=r"digits/all has no label 'colour'.*digit"):
        list(linear_probe(split, split, other))
    unknown = digit_split(digits[0][:20], np.full(20, -1), name="digits/unlabelled")
    with pytest.raises(ValueError, match="digits/unlabelled has none"):
        list(linear_probe(unknown, split, CONFIG))
    with pytest.raises(ValueError, match="one value a picture cannot have metric 'map_11'"):
        list(linear_probe(split, split, dataclasses.replace(CONFIG, metric="map_11")))
