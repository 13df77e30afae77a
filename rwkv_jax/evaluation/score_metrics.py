"""Metrics of scores rather than of places: average precision as VOC2007 has it, and ROC AUC.

Ties count against the model in average precision. In ROC AUC a tie counts half, as its definition
has it: a model that gives every picture the same score gets 0.5 there, which is chance.
"""

import numpy as np
from jaxtyping import Float, Int


def eleven_point_average_precision(
    scores: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
) -> float:
    """The mean, over the recalls 0, 0.1, ..., 1, of the best precision at that recall or a higher
    one (Everingham et al. 2010, section 4.2).

    Example:
      >>> scores = np.array([0.9, 0.8, 0.7, 0.6])
      >>> # precision 1 up to a recall of 1/2 (0 to 0.5: six points), then 2/3 (five points)
      >>> round(eleven_point_average_precision(scores, np.array([1, 0, 1, 0])), 4)
      0.8485

    Args:
      scores: how sure the model is that the class is there.
      labels: 1 where it is, 0 where it is not, -1 where that does not count.

    Raises:
      ValueError: no picture has the class, or a score is NaN.
    """
    scores, labels = _counted(scores, labels)
    positives = int((labels == 1).sum())
    if not positives:
        raise ValueError("no picture has the class, so its average precision is not defined")
    order = np.lexsort((labels, -scores))  # of equals, those without the class stand first
    found = np.cumsum(labels[order])
    precision = found / np.arange(1, len(found) + 1)
    # the first place with each number of found ones; whole numbers, so that 3/10 is 0.3
    wanted = np.maximum(-(-np.arange(11) * positives // 10), 1)
    first = np.searchsorted(found, wanted)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best_from_here[first].mean())


def mean_average_precision(
    scores: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, "n classes"]
) -> float:
    """The mean of the classes' 11-point average precisions, over classes that some picture has.

    Example:
      >>> scores = np.array([[0.9, 0.1], [0.2, 0.3]])
      >>> mean_average_precision(scores, np.array([[1, 1], [0, 0]]))  # first 1, second 1/2
      0.75
    """
    present = np.flatnonzero((labels == 1).any(axis=0))
    parts = [eleven_point_average_precision(scores[:, c], labels[:, c]) for c in present]
    if not parts:
        raise ValueError("no picture has any of the classes")
    return float(np.mean(parts))


def chance_mean_average_precision(labels: Int[np.ndarray, "n classes"]) -> float:
    """The share of pictures with a class, averaged over classes: the precision of a random order,
    whatever the recall, but for the noise of small sets.
    """
    counted = (labels >= 0).sum(axis=0)
    there = (labels == 1).sum(axis=0)
    some = there > 0
    return float(np.mean(there[some] / counted[some]))


def roc_auc(scores: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> float:
    """How often a picture of class 1 scores above one of class 0; a tie is half (Mann-Whitney).

    Example:
      >>> # pairs: 0.8 > 0.5, 0.8 > 0.1, 0.5 = 0.5, 0.5 > 0.1: 3.5 of 4
      >>> roc_auc(np.array([0.8, 0.5, 0.5, 0.1]), np.array([1, 1, 0, 0]))
      0.875

    Raises:
      ValueError: one of the classes has no picture, or a score is NaN.
    """
    scores, labels = _counted(scores, labels)
    of_one, of_zero = scores[labels == 1], np.sort(scores[labels == 0])
    if not (of_one.size and of_zero.size):
        raise ValueError(
            f"ROC AUC needs pictures of both classes, but there are {of_one.size} of class 1 and"
            f" {of_zero.size} of class 0"
        )
    below = np.searchsorted(of_zero, of_one, "left")
    not_above = np.searchsorted(of_zero, of_one, "right")
    return float((below + not_above).sum() / (2 * of_one.size * of_zero.size))


def _counted(
    scores: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    if scores.shape != labels.shape:
        raise ValueError(f"scores have shape {scores.shape}, but labels {labels.shape}")
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN: the features or the parameters are broken")
    return scores[labels >= 0], labels[labels >= 0]
