"""Metrics in pure numpy. Every tie counts against the model.

A model that gives every candidate the same score gets 0 here, not 100%: a candidate that is no
positive and scores as high as a positive stands before it. Metrics are shares in [0, 1], but for
ranks, which count from 1.
"""

import numpy as np
import scipy.special
from jaxtyping import Bool, Float, Int


def best_positive_rank(
    scores: Float[np.ndarray, "Q C"], positive: Bool[np.ndarray, "Q C"]
) -> Int[np.ndarray, " Q"]:
    """The place, from 1, of every query's best-scored positive among the candidates that are no
    positives.

    Other positives do not push the best one back: with several right answers, one of them in the
      top k is a hit.

    Example:
      >>> scores = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.5, 0.5, 0.1]])
      >>> positive = np.array([[1, 0, 0], [0, 1, 1], [1, 0, 0]], bool)
      >>> best_positive_rank(scores, positive)  # found at once; second; tied with a wrong one
      array([1, 2, 2])

    Args:
      scores: similarity of each query to each candidate.
      positive: which candidates are right for each query; at least one a query.

    Raises:
      ValueError: the shapes differ, a query has no positive, or a score is NaN.
    """
    if scores.shape != positive.shape:
        raise ValueError(f"scores have shape {scores.shape}, but positives {positive.shape}")
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN: the features or the parameters are broken")
    without = np.flatnonzero(~positive.any(axis=1))
    if without.size:
        raise ValueError(f"{without.size} queries have no positive, the first is {without[0]}")
    best = np.where(positive, scores, -np.inf).max(axis=1, keepdims=True)  # [Q, 1]
    return 1 + ((scores >= best) & ~positive).sum(axis=1)


def recall_at_k(ranks: Int[np.ndarray, " Q"], k: int) -> float:
    """The share of queries whose best positive stands among the first k (R@k).

    Example:
      >>> recall_at_k(np.array([1, 3, 11, 2]), 5)
      0.75
    """
    return float(np.mean(ranks <= k))


def chance_recall_at_k(positives: Int[np.ndarray, " Q"], candidates: int, k: int) -> float:
    """R@k of a random order: mean of 1 - C(n-m, k) / C(n, k), with m positives of n candidates.

    Example:
      >>> round(chance_recall_at_k(np.array([1, 1]), 250, 10), 4)  # one right of 250: k / n
      0.04
      >>> round(chance_recall_at_k(np.array([2]), 4, 1), 4)
      0.5
    """
    i = np.arange(min(k, candidates))
    # C(n-m, k) / C(n, k) = prod_{i<k} (n-m-i) / (n-i), 0 as soon as fewer than k candidates are
    # wrong
    misses = np.maximum(candidates - positives[:, None] - i, 0) / (candidates - i)  # [Q, k]
    return float(np.mean(1 - misses.prod(axis=1)))


def chance_mean_rank(positives: Int[np.ndarray, " Q"], candidates: int) -> float:
    """The mean rank of a random order: mean of 1 + (n-m) / (m+1), with m positives of n candidates.

    The n-m others fall evenly into the m+1 gaps between the positives.

    Example:
      >>> chance_mean_rank(np.array([1]), 9), chance_mean_rank(np.array([2]), 5)
      (5.0, 2.0)
    """
    return float(np.mean(1 + (candidates - positives) / (positives + 1)))


def chance_median_rank(positives: Int[np.ndarray, " Q"], candidates: int) -> float:
    """The median rank of a random order: the least k that at least half of all ranks do not exceed.

    Example:
      >>> chance_median_rank(np.array([1]), 9), chance_median_rank(np.array([2]), 4)
      (5.0, 1.0)
    """
    counts, weights = np.unique(positives, return_counts=True)

    def log_choose(n: int, k: Int[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        gamma = scipy.special.gammaln
        return gamma(n + 1) - gamma(k + 1) - gamma(n - k + 1)

    def missed(k: int) -> float:
        # C(n-m, k) / C(n, k) = C(n-k, m) / C(n, m), 0 where m > n-k
        possible = counts <= candidates - k
        m = counts[possible]
        ratio = np.exp(log_choose(candidates - k, m) - log_choose(candidates, m))
        return float((weights[possible] * ratio).sum() / weights.sum())

    low, high = 0, candidates  # missed(low) > 1/2 >= missed(high)
    while high - low > 1:
        middle = (low + high) // 2
        # 1e-9: the noise of gammaln at a million candidates
        low, high = (middle, high) if missed(middle) > 0.5 + 1e-9 else (low, middle)
    return float(high)


def top_k_accuracy(
    scores: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"], k: int
) -> float:
    """The share of rows whose own class is among the k best-scored.

    Example:
      >>> scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]])
      >>> top_k_accuracy(scores, np.array([1, 2]), 1), top_k_accuracy(scores, np.array([1, 2]), 2)
      (0.5, 1.0)
    """
    return recall_at_k(label_rank(scores, labels), k)


def label_rank(
    scores: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """The place, from 1, of every row's own class.

    Example:
      >>> label_rank(np.array([[0.1, 0.7, 0.2]]), np.array([2]))
      array([2])
    """
    return best_positive_rank(scores, labels[:, None] == np.arange(scores.shape[1]))


def mean_per_class_accuracy(
    correct: Bool[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
) -> float:
    """Accuracy of each class that occurs, averaged over these classes: a rare class weighs as much
    as a common one.

    Example:
      >>> mean_per_class_accuracy(np.array([True, True, True, False]), np.array([0, 0, 0, 1]))
      0.5
    """
    _, member = np.unique(labels, return_inverse=True)
    return float(np.mean(np.bincount(member, correct) / np.bincount(member)))


def confusion_matrix(
    predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """Counts by true class (row) and predicted class (column).

    Example:
      >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 1]), 2)
      array([[1, 1],
             [0, 1]])
    """
    counts = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes)  # [classes * classes] -> [true, predicted]


def roc_auc(scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
    """The share of (positive, other) pairs in which the positive scores higher.

    Ties count against the model, so a constant score gets 0 (scikit-learn gives it 1/2).

    Example:
      >>> roc_auc(np.array([0.9, 0.4, 0.5, 0.1]), np.array([True, True, False, False]))
      0.75

    Raises:
      ValueError: there is no positive, or nothing else.
    """
    others = np.sort(scores[~positive])
    if not positive.any() or not len(others):
        raise ValueError(
            f"roc_auc needs both kinds: {positive.sum()} of {len(positive)} rows are positive"
        )
    below = np.searchsorted(others, scores[positive], "left")
    return float(below.mean() / len(others))


def average_precision_11(
    scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]
) -> float:
    """VOC2007's average precision: the mean, over recalls of 0, 0.1, ..., 1, of the best precision
    at that recall or a higher one. Ties are ordered with the positives last.

    Example:
      >>> average_precision_11(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))
      0.8484848484848484

    Raises:
      ValueError: there is no positive.
    """
    if not positive.any():
        raise ValueError(f"none of {len(positive)} rows is positive")
    hits = positive[np.lexsort((positive, -scores))]
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # at this place or later
    # in tenths, whole numbers: the first place where found / all >= t / 10
    needed = -(-np.arange(11) * found[-1] // 10)
    return float(best[np.searchsorted(found, np.maximum(needed, 1))].mean())
