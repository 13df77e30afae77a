"""The contrastive losses as their definitions say, in float64 numpy, and their slopes."""

from collections.abc import Callable

import numpy as np


def _logits(image, text, scale):
    image = image / np.linalg.norm(image, axis=1, keepdims=True)
    text = text / np.linalg.norm(text, axis=1, keepdims=True)
    return scale * image @ text.T


def softmax_float64(image, text, scale, labels):
    """Row by row: the mean over right answers of log sum exp - logit, in both directions."""
    logits = _logits(image, text, scale)
    total = 0.0
    for rows in (logits, logits.T):
        for i, row in enumerate(rows):
            log_sum = np.log(np.sum(np.exp(row - row.max()))) + row.max()
            total += np.mean(log_sum - row[labels == labels[i]])
    return total / (2 * len(logits))


def sigmoid_float64(image, text, scale, bias, labels):
    """Pair by pair: -log of the probability of what is so."""
    logits = _logits(image, text, scale) + bias
    total = 0.0
    for i, row in enumerate(logits):
        sign = np.where(labels == labels[i], 1.0, -1.0)
        total += np.sum(np.logaddexp(0.0, -sign * row))
    return total / len(logits)


def slopes(function: Callable[..., float], *arguments: np.ndarray) -> list[np.ndarray]:
    """Central differences of `function` by every number of every argument but the last."""
    found = []
    for which, argument in enumerate(arguments[:-1]):
        slope = np.zeros(np.shape(argument))
        for at in np.ndindex(slope.shape):
            values = []
            for step in (1e-5, -1e-5):
                moved = np.array(argument, np.float64)
                moved[at] += step
                values.append(function(*arguments[:which], moved, *arguments[which + 1 :]))
            slope[at] = (values[0] - values[1]) / 2e-5
        found.append(slope)
    return found
