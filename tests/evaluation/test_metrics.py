"""Metrics by hand, and their worked examples."""

import doctest
import math

import chex
import numpy as np
import pytest

from rwkv_jax.evaluation import metrics
from rwkv_jax.evaluation.probe.judge import JUDGES


def test_worked_examples():
    failures, examples = doctest.testmod(metrics)
    assert examples >= 6
    assert failures == 0


def test_equal_scores_are_misses():
    scores = np.full((4, 20), 0.3)
    positive = np.eye(4, 20, dtype=bool)
    chex.assert_trees_all_equal(metrics.best_positive_rank(scores, positive), np.full(4, 20))
    assert metrics.top_k_accuracy(scores, np.arange(4), 19) == 0.0
    assert metrics.top_k_accuracy(scores, np.arange(4), 20) == 1.0


def test_positives_do_not_push_each_other_back():
    scores = np.array([[0.9, 0.8, 0.7, 0.6]])
    ranks = metrics.best_positive_rank(scores, np.array([[False, True, True, True]]))
    chex.assert_trees_all_equal(ranks, np.array([2]))


def test_chance_recall_is_what_random_orders_give():
    rng = np.random.default_rng(0)
    positive = np.zeros((3, 12), bool)
    positive[0, :1] = positive[1, :3] = positive[2, :6] = True
    chance = metrics.chance_recall_at_k(positive.sum(axis=1), 12, 4)
    by_hand = 1 - (8 / 12 + math.comb(9, 4) / math.comb(12, 4) + 15 / math.comb(12, 4)) / 3
    assert chance == pytest.approx(by_hand)
    drawn = [
        metrics.recall_at_k(metrics.best_positive_rank(rng.random((3, 12)), positive), 4)
        for _ in range(3000)
    ]
    assert np.mean(drawn) == pytest.approx(chance, abs=0.02)


def test_chance_recall_with_more_places_than_candidates():
    assert metrics.chance_recall_at_k(np.array([1, 2]), 5, 10) == 1.0


def test_chance_ranks_are_what_random_orders_give():
    rng = np.random.default_rng(0)
    positive = np.zeros((3, 12), bool)
    positive[0, :1] = positive[1, :3] = positive[2, :6] = True
    count = positive.sum(axis=1)
    drawn = np.concatenate(
        [metrics.best_positive_rank(rng.random((3, 12)), positive) for _ in range(3000)]
    )
    assert metrics.chance_mean_rank(count, 12) == pytest.approx(np.mean(drawn), abs=0.05)
    assert metrics.chance_median_rank(count, 12) == np.median(drawn)
    # one of a million: half of all ranks are up to half a million
    assert metrics.chance_median_rank(np.array([1]), 10**6) == 500_000
    assert metrics.chance_median_rank(np.array([3, 3]), 3) == 1


def test_roc_auc_and_average_precision():
    positive = np.array([True, False, True, False])
    assert metrics.roc_auc(np.array([4.0, 3, 2, 1]), positive) == 3 / 4
    assert metrics.roc_auc(np.zeros(4), positive) == 0
    # precision 1 up to recall 1/2 (6 of 11 points), then 2/3
    expected = (6 + 5 * 2 / 3) / 11
    assert metrics.average_precision_11(np.array([4.0, 3, 2, 1]), positive) == pytest.approx(
        expected
    )
    # all tie: the positives come last, at places 3 and 4: 1/3 and 2/4
    assert metrics.average_precision_11(np.zeros(4), positive) == pytest.approx(1 / 2)
    # ten positives, then one more place for each: recall 0.3 is three of ten, no rounding
    ten = np.array([True] * 3 + [False] + [True] * 7)
    expected = (4 * 1 + 7 * 10 / 11) / 11
    assert metrics.average_precision_11(-np.arange(11.0), ten) == pytest.approx(expected)
    for metric in (metrics.roc_auc, metrics.average_precision_11):
        with pytest.raises(ValueError, match=r"of 4 "):
            metric(np.zeros(4), np.zeros(4, bool))


def test_mean_per_class_and_confusion():
    predicted, labels = np.array([0, 0, 2, 2, 2]), np.array([0, 0, 0, 2, 1])
    expected = np.array([[2, 0, 1], [0, 0, 1], [0, 0, 1]])
    chex.assert_trees_all_equal(metrics.confusion_matrix(predicted, labels, 3), expected)
    accuracy = metrics.mean_per_class_accuracy(predicted == labels, labels)
    assert accuracy == pytest.approx((2 / 3 + 0 + 1) / 3)


def test_judges_of_a_probe():
    # what the second class has before the first: 1, -1, 0.2
    scores = np.array([[0.0, 1.0], [3.0, 2.0], [0.0, 0.2]])
    assert JUDGES["roc_auc"](scores, np.array([1, 0, 0])) == 1
    # own classes first, second, fifth and sixth
    falling = np.tile(np.arange(6.0, 0, -1), (4, 1))
    assert JUDGES["top_1_5"](falling, np.array([0, 1, 4, 5])) == (1 / 4 + 3 / 4) / 2
    # the second class is shown by no picture, and counts for nothing
    assert JUDGES["map_11"](scores, np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])) == 1


@pytest.mark.parametrize(
    ("scores", "positive", "message"),
    [
        (np.zeros((2, 3)), np.ones((2, 4), bool), r"\(2, 3\).*\(2, 4\)"),
        (np.zeros((2, 3)), np.array([[True] * 3, [False] * 3]), "1 queries have no positive"),
        (np.full((1, 2), np.nan), np.ones((1, 2), bool), "NaN"),
    ],
)
def test_bad_input(scores, positive, message):
    with pytest.raises(ValueError, match=message):
        metrics.best_positive_rank(scores, positive)
