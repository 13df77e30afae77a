"""Evaluation configs refuse what cannot be measured, and survive JSON."""

import dataclasses
import json

import pytest

from rwkv_jax.evaluation.config import (
    EvalConfig,
    LinearProbeConfig,
    RetrievalConfig,
    ZeroShotConfig,
)


def test_round_trip_through_json():
    config = EvalConfig(
        retrieval=(RetrievalConfig("open_emoji", "new_artist", ks=(1, 3)),),
        zero_shot=(ZeroShotConfig("open_emoji", "new_artist", "group", "emoji"),),
        linear_probe=(
            LinearProbeConfig("open_emoji", "train", "new_artist", "group", shots=(1, 2)),
        ),
        batch_size=64,
        pool_padding=False,
    )
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    assert EvalConfig.from_dict(values) == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RetrievalConfig("a", "b", ks=(0,)), r"RetrievalConfig.ks = \(0,\)"),
        (lambda: RetrievalConfig("a", "b", ks=()), r"RetrievalConfig.ks = \(\)"),
        (lambda: ZeroShotConfig("a", "b", "c", prompts="odd"), r"'odd': must be one of .*photo"),
        (lambda: LinearProbeConfig("a", "b", "c", "d", metric="odd"), "'odd': must be .*map_11"),
        (lambda: LinearProbeConfig("a", "b", "c", "d", shots=(0, 1)), r"shots = \(0, 1\)"),
        (lambda: LinearProbeConfig("a", "b", "c", "d", shot_seeds=1), "shot_seeds = 1"),
        (lambda: LinearProbeConfig("a", "b", "c", "d", validation_share=1.0), "validation_share"),
        (lambda: LinearProbeConfig("a", "b", "c", "d", max_train=1), "max_train = 1"),
        (lambda: EvalConfig(batch_size=0), "batch_size = 0"),
        (
            lambda: EvalConfig(retrieval=(RetrievalConfig("a", "x"), RetrievalConfig("b", "x"))),
            "two evaluators would write figures named 'retrieval/x'",
        ),
        (lambda: EvalConfig.from_dict({"retrieval": [{"dataset": "a"}]}), "RetrievalConfig.*split"),
        (lambda: EvalConfig.from_dict({"speed": 3}), "EvalConfig.*speed"),
    ],
)
def test_bad_values_name_their_field(make, message):
    with pytest.raises(ValueError, match=message):
        make()
