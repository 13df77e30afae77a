"""The probe beside scikit-learn on Fashion-MNIST, which a package of Debian's holds."""

import gzip

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from rwkv_jax.evaluation.probe import fashion_mnist
from rwkv_jax.evaluation.probe.bench import objective
from rwkv_jax.evaluation.probe.examples import Examples
from rwkv_jax.evaluation.probe.fit import Problem
from rwkv_jax.evaluation.probe.rows import rows_mesh

TRAIN = 20_000  # of 60,000: scikit-learn's exact fits take minutes as it is
STRENGTHS = (1e4, 1e3, 1e2, 10.0)


@pytest.mark.fashion_mnist
def test_agrees_with_scikit_learn():
    pictures, labels = fashion_mnist.read("train")
    assert pictures.shape == (60_000, 28, 28)
    assert np.bincount(labels).tolist() == [6_000] * 10
    train = Examples(fashion_mnist.features(pictures[:TRAIN]), labels[:TRAIN].astype(np.int64))
    pictures, labels = fashion_mnist.read("t10k")
    features = fashion_mnist.features(pictures)
    problem = Problem(train.features, train.targets, 10, rows_mesh())
    for ours, strength in zip(problem.fit(STRENGTHS), STRENGTHS, strict=True):
        theirs = LogisticRegression(C=1 / strength, max_iter=3000, tol=1e-6)
        theirs.fit(train.features.astype(np.float64), train.targets)
        least = objective(train, theirs.coef_, theirs.intercept_, strength)
        assert ours.objective == pytest.approx(least, rel=1e-4)
        assert objective(train, ours.weights, ours.bias, strength) == pytest.approx(least, rel=1e-4)
        accuracy = np.mean(ours.scores(features).argmax(axis=1) == labels)
        assert accuracy == pytest.approx(theirs.score(features, labels), abs=1e-3)


def test_files_that_are_not_there_or_no_idx(tmp_path):
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        fashion_mnist.read("train", tmp_path)
    path = tmp_path / "short.gz"
    content = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6])
    path.write_bytes(gzip.compress(content))
    assert fashion_mnist.read_idx(path).tolist() == [[1, 2, 3], [4, 5, 6]]
    path.write_bytes(gzip.compress(content[:-1]))
    with pytest.raises(ValueError, match="no whole idx file"):
        fashion_mnist.read_idx(path)
