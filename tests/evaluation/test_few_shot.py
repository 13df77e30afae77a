"""Drawing a few pictures a class, and what a probe learns of them."""

import numpy as np

from rwkv_jax.evaluation.probe import few_shot as room
from rwkv_jax.evaluation.probe.examples import Examples, draw_shots, hold_out
from rwkv_jax.evaluation.probe.few_shot import few_shot
from rwkv_jax.evaluation.probe.judge import JUDGES


def test_shots_are_drawn_class_by_class():
    targets = np.array([0, 1, 1, 0, 2, 0, 1, 0])
    one = draw_shots(targets, 1, np.random.default_rng(0))
    three = draw_shots(targets, 3, np.random.default_rng(0))
    assert sorted(targets[one]) == [0, 1, 2]
    assert sorted(targets[three]) == [0, 0, 0, 1, 1, 1, 2]  # there is one of class 2
    assert set(one) <= set(three)
    assert len(set(three)) == 7
    draws = {tuple(sorted(draw_shots(targets, 1, np.random.default_rng(i)))) for i in range(20)}
    assert len(draws) > 5


def test_held_out_part():
    rows = Examples(np.arange(10, dtype=np.float32)[:, None], np.arange(10))
    rest, part = hold_out(rows, 0.25, 3)
    assert len(part) == 2
    assert sorted([*rest.targets, *part.targets]) == list(range(10))
    rest, part = hold_out(rows.take(np.array([4, 5])), 0.9, 3)
    assert (len(rest), len(part)) == (1, 1)


def test_validation_shots_are_at_most_4_and_drawn_by_the_seed(monkeypatch):
    asked = []

    def search(drawn, held_out, *_):
        asked.append([each.features.tolist() for each in held_out])
        return [np.zeros((2, 4), np.float32)] * len(drawn)

    monkeypatch.setattr(room, "_search", search)
    features = np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)
    rows = Examples(features, np.arange(80) % 2)
    few_shot(rows, rows, rows, classes=2, shots=(2, 16), seeds=(0, 1), judge=JUDGES["accuracy"])
    assert [[len(each) for each in draws] for draws in asked] == [[4, 4], [8, 8]]
    assert all(first != second for first, second in asked)


def test_more_shots_are_better_and_the_gap_is_known():
    """Two clouds of unit variance, 2 apart on one axis of 8: the best rule has 84.1%."""
    rng = np.random.default_rng(0)

    def draw(count):
        targets = rng.integers(2, size=count)
        features = rng.normal(size=(count, 8)).astype(np.float32) + 5
        features[:, 3] += 2 * targets
        return Examples(features, targets)

    found = few_shot(
        draw(400),
        draw(200),
        draw(4000),
        classes=2,
        shots=(1, 16),
        seeds=range(4),
        judge=JUDGES["accuracy"],
    )
    assert found.keys() == {1, 16}
    assert all(len(values) == 4 for values in found.values())
    assert len(set(found[1])) > 1  # seeds draw anew
    assert 0.5 < np.mean(found[1]) < np.mean(found[16]) < 0.85
    assert np.mean(found[16]) > 0.72
