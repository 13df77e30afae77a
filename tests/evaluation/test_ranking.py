"""Ranks in blocks on the device beside the rule, with ties, at sizes that blocks do not divide."""

import numpy as np
import pytest

from rwkv_jax.evaluation import metrics, ranking
from rwkv_jax.evaluation.features import unit_length
from rwkv_jax.evaluation.ranking import ranks, similarity


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(ranking, "SMALL", 0)
    monkeypatch.setattr(ranking, "QUERIES", 128)
    monkeypatch.setattr(ranking, "CANDIDATES", 256)
    monkeypatch.setattr(ranking, "PAIRS", 37)


def by_the_rule(queries, query_concept, candidates, candidate_concept):
    positive = query_concept[:, None] == candidate_concept
    return metrics.best_positive_rank(similarity(queries, candidates), positive)


def features(rng, count, width=24):
    return unit_length(rng.normal(size=(count, width)))


def test_blocks_give_the_rules_ranks(small_blocks):
    rng = np.random.default_rng(0)
    queries, candidates = features(rng, 301), features(rng, 645)
    # concepts of several queries and several candidates, numbered with gaps and below 0
    candidate_concept = rng.integers(-40, 40, 645) * 10**12
    query_concept = rng.choice(candidate_concept, 301)
    given = queries, query_concept, candidates, candidate_concept
    found = ranks(*given)
    assert found.tolist() == by_the_rule(*given).tolist()
    assert 1 < found.mean() < 200


def test_copies_tie_wherever_they_stand(small_blocks):
    """Every candidate stands in each block, as its own concept once: rank = number of copies."""
    rng = np.random.default_rng(1)
    originals = features(rng, 60)
    candidates = np.tile(originals, (9, 1))  # 540: three blocks
    concept = np.arange(540)
    found = ranks(originals, np.arange(60) + 240, candidates, concept)
    assert found.tolist() == [9] * 60


def test_a_last_digit_decides(small_blocks):
    """Scores that differ by one unit in the last place of float32 are no ties."""
    rng = np.random.default_rng(2)
    queries = features(rng, 50)
    nudged = queries.copy()
    nudged[:, 0] = np.nextafter(nudged[:, 0], np.float32(2) * np.sign(nudged[:, 0]))
    candidates = np.concatenate([queries, nudged, features(rng, 300)])
    concept = np.concatenate([np.arange(50), np.full(350, -1)])
    given = queries, np.arange(50), candidates, concept
    assert ranks(*given).tolist() == by_the_rule(*given).tolist()


@pytest.mark.parametrize("dense", [0, 2**40])
def test_a_collapsed_model_gets_nothing(small_blocks, monkeypatch, dense):
    """All scores are too near to tell; either way of looking again finds that all tie."""
    monkeypatch.setattr(ranking, "DENSE", dense)
    alike = np.tile(unit_length(np.arange(1.0, 38.0)), (300, 1))
    assert ranks(alike, np.arange(300), alike, np.arange(300)).tolist() == [300] * 300


def test_float32_scores_stay_within_the_bound():
    rng = np.random.default_rng(3)
    for width in (3, 640):
        # all of one sign: no rounding error cancels
        queries = unit_length(np.abs(rng.normal(size=(200, width))))
        candidates = unit_length(np.abs(rng.normal(size=(200, width))))
        error = np.abs(queries @ candidates.T - similarity(queries, candidates)).max()
        bound = ranking.rounding(queries, candidates)
        assert error < bound < 1e-4


@pytest.mark.parametrize("small", [0, 2**24])
def test_bad_input(monkeypatch, small):
    monkeypatch.setattr(ranking, "SMALL", small)
    some = np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match="1 queries have no positive, the first is 1"):
        ranks(some, np.array([0, 5, 2]), some, np.arange(3))
    broken = np.where(np.arange(3)[:, None] == 2, np.float32(np.nan), some)
    with pytest.raises(ValueError, match="1 candidate features are not finite, the first is 2"):
        ranks(some, np.arange(3), broken, np.arange(3))
