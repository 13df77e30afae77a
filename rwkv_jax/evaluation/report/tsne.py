"""t-SNE in numpy: points of many dimensions in a plane, neighbours kept beside each other.

Exact (every pair), so for up to about a thousand points. It starts from the first two principal
components instead of noise, which keeps the large-scale arrangement and gives one result a data
set (Kobak and Berens 2019). A principal-component plane itself shows a trained contrastive space
as one cloud: two of a hundred directions hold little of it.

Source: van der Maaten and Hinton 2008, "Visualizing Data using t-SNE".
"""

import numpy as np
from jaxtyping import Float


def principal_components(
    points: Float[np.ndarray, "n D"], count: int
) -> Float[np.ndarray, "n count"]:
    """Coordinates along the directions of largest variance, each with a positive largest entry."""
    centred = points - points.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    coordinates = left[:, :count] * sizes[:count]
    extremes = np.abs(coordinates).argmax(axis=0)
    return coordinates * np.sign(coordinates[extremes, np.arange(coordinates.shape[1])])


def neighbour_probabilities(
    squared_distances: Float[np.ndarray, "n n"], perplexity: float
) -> Float[np.ndarray, "n n"]:
    """Row i: how likely point i is to take each other point as its neighbour, at the perplexity.

    The width of each row's Gaussian is found by bisection on its entropy, all rows at once.
    """
    n = len(squared_distances)
    distances = squared_distances + np.diag(np.full(n, np.inf))
    distances = distances - distances.min(axis=1, keepdims=True)  # exponents at most 0
    low, high = np.zeros((n, 1)), np.full((n, 1), np.inf)
    precision = np.ones((n, 1))
    for _ in range(60):
        weights = np.exp(-distances * precision)
        rows = weights / weights.sum(axis=1, keepdims=True)
        entropy = -(rows * np.log(np.maximum(rows, 1e-300))).sum(axis=1, keepdims=True)
        too_wide = entropy > np.log(perplexity)
        low, high = np.where(too_wide, precision, low), np.where(too_wide, high, precision)
        precision = np.where(np.isinf(high), precision * 2, (low + high) / 2)
    return rows


def tsne(
    points: Float[np.ndarray, "n D"], *, perplexity: float = 20.0, steps: int = 500
) -> Float[np.ndarray, "n 2"]:
    """Coordinates in the plane.

    Raises:
      ValueError: fewer points than the perplexity needs (three times as many).
    """
    n = len(points)
    if n < 3 * perplexity:
        raise ValueError(f"{n} points are too few for a perplexity of {perplexity:g}")
    points = points.astype(np.float64)
    squares = (points**2).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0)
    one_way = neighbour_probabilities(distances, perplexity)
    p = np.maximum((one_way + one_way.T) / (2 * n), 1e-12)

    y = principal_components(points, 2)
    y = y / (y[:, 0].std() or 1) * 1e-4
    velocity, gains = np.zeros_like(y), np.ones_like(y)
    early = steps // 4  # attraction is exaggerated at first, so that clusters can pass each other
    rate = max(n / 12 / 4, 50.0)
    for step in range(steps):
        squares = (y**2).sum(axis=1)
        kernel = 1 / (1 + squares[:, None] + squares - 2 * y @ y.T)
        np.fill_diagonal(kernel, 0)
        q = np.maximum(kernel / kernel.sum(), 1e-12)
        pull = (p * (12 if step < early else 1) - q) * kernel
        gradient = 4 * (pull.sum(axis=1, keepdims=True) * y - pull @ y)
        same = np.sign(gradient) == np.sign(velocity)
        gains = np.maximum(np.where(same, gains * 0.8, gains + 0.2), 0.01)
        velocity = (0.5 if step < early else 0.8) * velocity - rate * gains * gradient
        y = y + velocity
        y = y - y.mean(axis=0)
    return y
