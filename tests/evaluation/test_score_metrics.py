"""Metrics of scores on examples worked out by hand, and beside scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rwkv_jax.evaluation.score_metrics import (
    chance_mean_average_precision,
    eleven_point_average_precision,
    mean_average_precision,
    roc_auc,
)


def test_eleven_points_by_hand():
    # in the order of scores: yes, no, no, yes, yes; precisions at the hits 1, 2/4, 3/5
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    labels = np.array([1, 0, 0, 1, 1])
    # recalls 0 to 0.3: 1 (four points); 0.4 to 1: the better of 2/4 and 3/5 (seven points)
    expected = (4 * 1 + 7 * 3 / 5) / 11
    assert eleven_point_average_precision(scores, labels) == pytest.approx(expected)
    # pictures that do not count change nothing, wherever they stand
    more = np.array([1.0, 0.75, 0.1])
    with_others = np.concatenate([scores, more]), np.concatenate([labels, [-1, -1, -1]])
    assert eleven_point_average_precision(*with_others) == pytest.approx(expected)


def test_recalls_of_whole_tenths_are_met_exactly():
    # 10 of 20 positives found at once, then all negatives: recall 0.5 is reached with precision 1
    labels = np.array([1] * 10 + [0] * 20 + [1] * 10)
    scores = -np.arange(40.0)
    # 6 recalls (0 to 0.5) with 1; 0.6 to 1 with the last, 20 of 40, as precision grows up to there
    expected = (6 * 1 + 5 * 20 / 40) / 11
    assert eleven_point_average_precision(scores, labels) == pytest.approx(expected)


def test_ties_count_against_the_model():
    labels = np.array([1, 0, 0, 0])
    assert eleven_point_average_precision(np.zeros(4), labels) == pytest.approx(1 / 4)
    assert roc_auc(np.zeros(4), labels) == 0.5


def test_mean_over_classes_that_occur():
    scores = np.array([[0.9, 0.1, 0.3], [0.2, 0.3, 0.3]])
    labels = np.array([[1, 1, 0], [0, 0, -1]])
    assert mean_average_precision(scores, labels) == pytest.approx((1 + 1 / 2) / 2)
    assert chance_mean_average_precision(labels) == pytest.approx(1 / 2)


def test_roc_auc_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 500)
    scores = np.round(rng.normal(size=500) + labels, 1)  # many ties
    assert roc_auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_what_is_not_defined():
    with pytest.raises(ValueError, match="no picture has the class"):
        eleven_point_average_precision(np.zeros(3), np.zeros(3, int))
    with pytest.raises(ValueError, match="3 of class 1 and 0 of class 0"):
        roc_auc(np.zeros(3), np.ones(3, int))
    with pytest.raises(ValueError, match="NaN"):
        roc_auc(np.array([np.nan, 1.0]), np.array([0, 1]))
