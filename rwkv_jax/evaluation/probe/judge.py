"""What a probe is judged by, by the names that the catalog of datasets uses."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Float, Int

from rwkv_jax.evaluation import metrics

# scores [n, C] and targets ([n], or [n, C] of 1, 0 and NaN) -> a share
Judge = Callable[[np.ndarray, np.ndarray], float]


def _accuracy(scores: Float[np.ndarray, "n C"], labels: Int[np.ndarray, " n"]) -> float:
    return metrics.top_k_accuracy(scores, labels, 1)


def _mean_per_class(scores: Float[np.ndarray, "n C"], labels: Int[np.ndarray, " n"]) -> float:
    return metrics.mean_per_class_accuracy(metrics.label_rank(scores, labels) == 1, labels)


def _top_1_5(scores: Float[np.ndarray, "n C"], labels: Int[np.ndarray, " n"]) -> float:
    place = metrics.label_rank(scores, labels)
    return (metrics.recall_at_k(place, 1) + metrics.recall_at_k(place, 5)) / 2


def _roc_auc(scores: Float[np.ndarray, "n 2"], labels: Int[np.ndarray, " n"]) -> float:
    if scores.shape[1] != 2:
        raise ValueError(f"roc_auc takes 2 classes, got {scores.shape[1]}")
    return metrics.roc_auc(scores[:, 1] - scores[:, 0], labels == 1)


def _map_11(scores: Float[np.ndarray, "n C"], targets: Float[np.ndarray, "n C"]) -> float:
    found = []
    for column, truth in zip(scores.T, targets.T, strict=True):
        known = ~np.isnan(truth)
        if (truth[known] == 1).any():
            found.append(metrics.average_precision_11(column[known], truth[known] == 1))
    return float(np.mean(found))


JUDGES: Mapping[str, Judge] = MappingProxyType(
    {
        "accuracy": _accuracy,
        "mean_per_class": _mean_per_class,
        "top_1_5": _top_1_5,
        "roc_auc": _roc_auc,
        "map_11": _map_11,
    }
)
