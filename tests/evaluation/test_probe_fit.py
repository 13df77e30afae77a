"""The probe's fits beside scikit-learn's on its digits, on one device and on four."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from rwkv_jax.evaluation.probe import fit, lbfgs
from rwkv_jax.evaluation.probe.fit import Problem
from rwkv_jax.evaluation.probe.rows import rows_mesh

ROOT = Path(__file__).resolve().parents[2]
TRAIN = 400
STRENGTHS = (1e6, 1e4, 1e2, 1.0)


@pytest.fixture(scope="module")
def digits():
    features, labels = load_digits(return_X_y=True)
    return features.astype(np.float32), labels


def exact(features, labels, strength):
    """scikit-learn's classifier, by Newton's method."""
    model = LogisticRegression(C=1 / strength, solver="newton-cholesky", tol=1e-7)
    with threadpool_limits(
        1
    ):  # for so small products its threads cost a hundred times what they do
        return model.fit(features.astype(np.float64), labels)


def objective(scores, labels, weights, strength):
    """In float64: the mean loss and the penalty."""
    scores = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
    own = scores[np.arange(len(labels)), labels]
    penalty = strength / 2 / len(labels) * (weights.astype(np.float64) ** 2).sum()
    return np.mean(np.log(np.exp(scores).sum(axis=1)) - own) + penalty


def test_agrees_with_scikit_learn(digits, monkeypatch):
    features, labels = digits
    train, train_labels = features[:TRAIN], labels[:TRAIN]
    problem = Problem(train, train_labels, 10, rows_mesh())
    together = problem.fit(STRENGTHS)
    for ours, strength in zip(together, STRENGTHS, strict=True):
        theirs = exact(train, train_labels, strength)
        least = objective(theirs.decision_function(train), train_labels, theirs.coef_, strength)
        assert ours.objective == pytest.approx(least, rel=1e-4)
        reached = objective(ours.scores(train), train_labels, ours.weights, strength)
        assert reached == pytest.approx(least, rel=1e-4)
        accuracy = np.mean(ours.scores(features[TRAIN:]).argmax(axis=1) == labels[TRAIN:])
        assert accuracy == pytest.approx(theirs.score(features[TRAIN:], labels[TRAIN:]), abs=1e-3)
        assert ours.steps < fit.MOST_STEPS

    # a good start is nearly all of the way
    (again,) = problem.fit(STRENGTHS[3:4], together[3:4])
    assert again.steps < together[3].steps / 3
    assert again.objective == pytest.approx(together[3].objective, rel=1e-5)

    # with less memory, and with finished fits taken out, they come to the same
    monkeypatch.setattr(fit, "SMALL", 0)
    for apart, ours in zip(problem.fit(STRENGTHS[:2]), together, strict=False):
        assert apart.objective == pytest.approx(ours.objective, rel=1e-5)
    monkeypatch.setattr(fit, "MEMORY", 0)
    assert problem._at_once() == 1
    (alone,) = problem.fit(STRENGTHS[1:2])
    assert alone.objective == pytest.approx(together[1].objective, rel=1e-5)


def test_several_labels_are_independent(digits):
    features, labels = digits
    # even, at least 5, and nothing known of half the rows
    targets = np.stack([labels % 2 == 0, labels >= 5], axis=1).astype(np.float32)[:TRAIN]
    targets[::2, 1] = np.nan
    (ours,) = Problem(features[:TRAIN], targets, 2, rows_mesh()).fit([10.0])
    for column in range(2):
        known = ~np.isnan(targets[:, column])
        theirs = exact(features[:TRAIN][known], targets[known, column], 10.0)
        expected = theirs.predict_proba(features[TRAIN:])[:, 1]
        probability = 1 / (1 + np.exp(-ours.scores(features[TRAIN:])[:, column]))
        np.testing.assert_allclose(probability, expected, atol=0.05)


def test_more_features_than_rows():
    """Two rows, five features, one of them always 0: the moments have no inverse."""
    features = np.array([[1e3, 0, 2, 0, 0], [1e3, 0, 0, 1, 0]], np.float32)
    (ours,) = Problem(features, np.array([0, 1]), 2, rows_mesh()).fit([1e-3])
    assert np.isfinite(ours.weights).all()
    assert ours.scores(features).argmax(axis=1).tolist() == [0, 1]
    # the one direction that tells them apart: w = a (x0 - x1) / 2 for class 0 and -w for class 1
    difference = features[0] - features[1]
    slope = ours.weights[0] @ difference
    np.testing.assert_allclose(ours.weights[0], slope * difference / 5, atol=1e-3)
    # f = log(1 + exp(-s)) + 1e-3 / 4 * 2 s^2 / 5 with s = slope, 0 = -1 / (1 + exp s) + 2e-4 s
    assert 1 / (1 + np.exp(slope)) == pytest.approx(2e-4 * slope, rel=0.02)


def test_preconditioner_is_an_inverse_factor():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(3, 50)), np.ones((1, 50))])
    moments = x @ x.T / 50
    factor = lbfgs.preconditioner(moments, 4, 0.5)
    hessian = 3 / 16 * moments + np.diag([0.5, 0.5, 0.5, 0])
    np.testing.assert_allclose(factor.T @ hessian @ factor, np.eye(4), atol=1e-6)


def test_rows_split_over_devices(digits, tmp_path):
    """Four devices, a number of rows that four does not divide: scikit-learn's classifier."""
    features, labels = digits
    np.savez(tmp_path / "rows.npz", features=features[:201], labels=labels[:201])
    script = (
        "import sys, numpy as np\n"
        "from rwkv_jax.evaluation.probe.fit import Problem\n"
        "from rwkv_jax.evaluation.probe.rows import rows_mesh\n"
        "rows = np.load(sys.argv[1])\n"
        "problem = Problem(rows['features'], rows['labels'], 10, rows_mesh())\n"
        "x = problem._rows.x\n"
        "assert len(x.sharding.device_set) == 4\n"
        "assert x.addressable_shards[0].data.shape == (65, 51)\n"
        "(fitted,) = problem.fit([100.0])\n"
        "np.save(sys.argv[2], fitted.scores(rows['features']))\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, tmp_path / "rows.npz", tmp_path / "scores.npy"],
        check=True,
        env=os.environ
        | {
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')}"
            " --xla_force_host_platform_device_count=4",
        },
    )
    theirs = exact(features[:201], labels[:201], 100.0)
    expected = theirs.decision_function(features[:201])
    scores = np.load(tmp_path / "scores.npy")
    scores -= scores.mean(axis=1, keepdims=True)  # a number a row changes no probability
    np.testing.assert_allclose(scores, expected - expected.mean(axis=1, keepdims=True), atol=0.05)
