"""The search of the penalty's strength, by hand."""

import pytest

from rwkv_jax.evaluation.probe.search import STRENGTHS, find_peak


def scorer(score):
    asked = []

    def look(places):
        asked.append(list(places))
        return [score(place) for place in places]

    return look, asked


def test_grid():
    assert len(STRENGTHS) == 97  # 96 steps
    assert [STRENGTHS[i] for i in (0, 16, 48, 96)] == pytest.approx([1e-6, 1e-4, 1, 1e6])
    assert STRENGTHS[49] / STRENGTHS[48] == pytest.approx(10 ** (1 / 8))


def test_halves_the_interval_round_the_peak():
    look, asked = scorer(lambda place: -abs(place - 43))
    assert find_peak(look) == 43
    assert asked == [[0, 16, 32, 48, 64, 80, 96], [40, 56], [36, 44], [42, 46], [43, 45]]


def test_stays_within_the_grid():
    look, asked = scorer(lambda place: -place)
    assert find_peak(look) == 0
    assert asked[1:] == [[8], [4], [2], [1]]
    look, asked = scorer(lambda place: place)
    assert find_peak(look) == 96
    assert asked[1:] == [[88], [92], [94], [95]]


def test_the_strongest_of_equals():
    look, asked = scorer(lambda place: min(place, 50) if place < 70 else 0)
    # 64 is the strongest with 50; 72 is worse, so the peak creeps up to 69
    assert find_peak(look) == 69
    assert asked[1] == [56, 72]
