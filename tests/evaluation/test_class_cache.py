"""Class features are computed once for each (weights, prompts), and damage is noticed."""

import numpy as np
import pytest

from rwkv_jax.evaluation import class_cache
from rwkv_jax.evaluation.class_cache import ClassCache

FEATURES = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(autouse=True)
def keep_two_prompts(monkeypatch):
    monkeypatch.setattr(class_cache, "WORTH_KEEPING", 2)


def count_calls():
    calls = []

    def compute():
        calls.append(1)
        return FEATURES

    return compute, calls


def test_computed_once(tmp_path):
    compute, calls = count_calls()
    for _ in range(2):
        cache = ClassCache(tmp_path / "new", "weights")
        got = cache.get(("a", "b"), ("{}",), compute)
        np.testing.assert_array_equal(got, FEATURES)
    assert len(calls) == 1
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_few_prompts_are_not_stored(tmp_path):
    compute, calls = count_calls()
    for _ in range(2):
        ClassCache(tmp_path, "weights").get(("a",), ("{}",), compute)
    assert len(calls) == 2
    assert not list(tmp_path.iterdir())


def test_a_disk_that_cannot_be_written_costs_no_features(tmp_path):
    compute, calls = count_calls()
    (tmp_path / "file").touch()
    cache = ClassCache(tmp_path / "file" / "new", "weights")
    np.testing.assert_array_equal(cache.get(("a", "b"), ("{}",), compute), FEATURES)
    assert len(calls) == 1


def test_weights_names_templates_and_their_order_count(tmp_path):
    paths = {
        ClassCache(tmp_path, weights).path(names, templates)
        for weights, names, templates in (
            ("one", ("a", "b"), ("{}", "a {}")),
            ("two", ("a", "b"), ("{}", "a {}")),
            ("one", ("b", "a"), ("{}", "a {}")),
            ("one", ("a", "b"), ("a {}", "{}")),
            ("one", ("a",), ("b", "{}", "a {}")),
        )
    }
    assert len(paths) == 5


@pytest.mark.parametrize("damage", ["cut", "other", "shape", "nan", "pickle", "empty"])
def test_damage_is_made_anew(tmp_path, damage):
    compute, calls = count_calls()
    cache = ClassCache(tmp_path, "weights")
    cache.get(("a", "b"), ("{}",), compute)
    path = cache.path(("a", "b"), ("{}",))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "other":
        path.write_bytes(b"nothing of the kind")
    elif damage == "shape":
        np.save(path, FEATURES[:1])
    elif damage == "nan":
        np.save(path, FEATURES * np.nan)
    elif damage == "pickle":
        np.save(path, np.array([{"a": 1}]), allow_pickle=True)
    else:
        path.write_bytes(b"")
    np.testing.assert_array_equal(cache.get(("a", "b"), ("{}",), compute), FEATURES)
    assert len(calls) == 2
    assert np.load(path).tolist() == FEATURES.tolist()
