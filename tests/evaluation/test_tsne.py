"""The plane keeps neighbours, of real pictures: scikit-learn's digits."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

from rwkv_jax.evaluation.report.tsne import neighbour_probabilities, principal_components, tsne


@pytest.fixture(scope="module")
def digits():
    points, labels = load_digits(return_X_y=True)
    return points[:400], labels[:400]


def neighbours_agree(plane, labels):
    """How often a point's six nearest in the plane, itself left out, vote for its class."""
    nearest = NearestNeighbors(n_neighbors=6).fit(plane).kneighbors(return_distance=False)
    votes = np.array([np.bincount(row).argmax() for row in labels[nearest]])
    return np.mean(votes == labels)


def test_keeps_neighbours_better_than_principal_components(digits):
    points, labels = digits
    plane = tsne(points)
    assert plane.shape == (400, 2)
    assert neighbours_agree(plane, labels) > 0.9
    assert neighbours_agree(principal_components(points, 2), labels) < 0.8
    np.testing.assert_array_equal(plane, tsne(points))


def test_perplexity_is_reached(digits):
    points = digits[0][:60]
    distances = ((points[:, None] - points) ** 2).sum(axis=-1)
    rows = neighbour_probabilities(distances, 9.0)
    np.testing.assert_allclose(rows.sum(axis=1), 1)
    assert not np.diag(rows).any()
    entropy = -(rows * np.log(np.maximum(rows, 1e-300))).sum(axis=1)
    np.testing.assert_allclose(np.exp(entropy), 9.0, rtol=1e-6)


def test_equal_points_stay_finite():
    assert np.isfinite(tsne(np.ones((70, 5)))).all()


def test_too_few_points():
    with pytest.raises(ValueError, match="10 points are too few for a perplexity of 20"):
        tsne(np.zeros((10, 3)))
