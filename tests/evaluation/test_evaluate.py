"""From pictures on disk through a real model to figures, twice."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv_jax.data.catalog import open_dataset
from rwkv_jax.data.loader import evaluation_batches
from rwkv_jax.data.preprocess import normalise
from rwkv_jax.data.records import DatasetError
from rwkv_jax.evaluation.config import (
    EvalConfig,
    LinearProbeConfig,
    RetrievalConfig,
    ZeroShotConfig,
)
from rwkv_jax.evaluation.embed import embedder_from
from rwkv_jax.evaluation.figure import is_rank
from rwkv_jax.evaluation.run import check_datasets, evaluate
from rwkv_jax.models.params import model_from_params

BATCH = 16  # as the embedder's


def silent(line):
    assert line


def test_pictures_and_texts(embedder, shapes):
    split = embedder.pictures(open_dataset(shapes, "test", ""))
    assert split.features.shape == (44, 16)
    assert split.features.dtype == np.float32
    assert split.skipped == 1
    assert 7 not in split.index
    assert split.texts[1]["words"] == ("square red",)
    np.testing.assert_allclose(np.linalg.norm(split.features, axis=1), 1, rtol=1e-5)
    # more texts than a batch, one twice, in the order that was asked for
    texts = [f"text {i}" for i in range(20)]
    features = embedder.texts([*texts, texts[3]])
    assert features.shape == (21, 16)
    chex.assert_trees_all_equal(features[20], features[3])
    chex.assert_trees_all_equal(embedder.texts(texts[::-1]), features[19::-1])


def test_features_are_the_models(embedder, run_config, params, shapes):
    """Batching, padding and caching change nothing."""
    single = embedder_from(run_config.model, params, dtype=jnp.float32, batch_size=5)
    source = open_dataset(shapes, "test", "")
    chex.assert_trees_all_close(
        embedder.pictures(source).features, single.pictures(source).features, atol=1e-5
    )
    texts = ["a disc", "a cross", "something else"]
    chex.assert_trees_all_close(embedder.texts(texts), single.texts(texts), atol=1e-5)


def test_without_padding_in_the_mean(embedder, run_config, params):
    """It changes a short text's feature; one that fills all 12 positions has no padding."""
    without = embedder_from(
        run_config.model, params, dtype=jnp.float32, batch_size=BATCH, pool_padding=False
    )
    texts = ["a disc", "a a a a a a a a a a a a a a"]
    short, full = np.abs(without.texts(texts) - embedder.texts(texts)).max(axis=1)
    assert short > 0.01
    assert full < 1e-6


def test_probes_take_features_before_normalisation(embedder, run_config, params, shapes):
    source = open_dataset(shapes, "test", "")
    split = embedder.pictures(source)
    batch = next(iter(evaluation_batches(source, image_size=16, batch_size=BATCH)))
    model = model_from_params(run_config.model, params, dtype=jnp.float32)
    expected = model.encode_image(normalise(batch["image"]))
    np.testing.assert_allclose(split.before_normalisation()[:BATCH], expected, rtol=1e-3, atol=1e-4)
    assert not np.allclose(split.lengths, 1, rtol=0.1)


def test_same_parameters_give_the_same_bits(embedder, run_config, params):
    first = evaluate(embedder, run_config.eval, "", say=silent)
    copied = jax.tree.map(lambda leaf: jnp.array(np.array(leaf)), params)
    again = embedder_from(run_config.model, copied, dtype=jnp.float32, batch_size=16)
    second = evaluate(again, run_config.eval, "", say=silent)
    assert first.metrics == second.metrics
    other = jax.tree.map(lambda leaf: leaf * 1.5, params)
    third = embedder_from(run_config.model, other, dtype=jnp.float32, batch_size=16)
    assert evaluate(third, run_config.eval, "", say=silent).metrics != first.metrics


def test_figures(embedder, run_config, shapes):
    said = []
    evaluation = evaluate(embedder, run_config.eval, "", say=said.append)
    metrics, chance = evaluation.metrics, evaluation.chance
    assert metrics.keys() == chance.keys()
    for name in metrics:
        low, high = (1, 46) if is_rank(name) else (0, 1)
        assert low <= metrics[name] <= high, name
        assert low <= chance[name] <= high, name
    for name in (
        "retrieval/test/text_to_image/R@5",
        "retrieval/test/image_to_text/R@1",
        "retrieval/test/caption/text_to_image/R@1",
        "retrieval/test/image_to_text/median_rank",
        "zero_shot/test/shape/top_1",
        "linear_probe/test/shape/mean_per_class",
    ):
        assert name in metrics
        assert name in evaluation.table()
    assert chance["zero_shot/test/shape/top_1"] == pytest.approx(1 / 3)
    # each split is embedded once though three evaluators ask
    assert sum("encoded" in line for line in said) == 2
    assert evaluation.datasets[f"{shapes}/test"]["count"] == 44
    assert evaluation.datasets[f"{shapes}/test"]["skipped"] == 1
    assert set(evaluation.prompts) == {"emoji"}


def test_untrained_features_already_tell_shapes_apart(embedder, run_config):
    """Random features of pictures are no noise: a linear probe beats guessing by far."""
    only = EvalConfig(linear_probe=run_config.eval.linear_probe, batch_size=16)
    evaluation = evaluate(embedder, only, "", say=silent)
    assert evaluation.metrics["linear_probe/test/shape/top_1"] > 0.5
    assert evaluation.chance["linear_probe/test/shape/top_1"] < 0.4


def test_broken_parameters(run_config, params, shapes):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, params)
    embedder = embedder_from(run_config.model, broken, dtype=jnp.float32, batch_size=16)
    with pytest.raises(ValueError, match="picture feature is not finite"):
        embedder.pictures(open_dataset(shapes, "test", ""))
    with pytest.raises(ValueError, match="text feature is not finite"):
        embedder.texts(["a"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EvalConfig((RetrievalConfig("no_such_data", "test"),)), "no_such_data"),
        (EvalConfig((RetrievalConfig("SHAPES", "validation"),)), "validation"),
        (EvalConfig(zero_shot=(ZeroShotConfig("SHAPES", "test", "size"),)), "no label 'size'"),
    ],
)
def test_what_cannot_be_measured(embedder, shapes, config, message):
    values = json.loads(json.dumps(dataclasses.asdict(config)).replace("SHAPES", shapes))
    named = EvalConfig.from_dict(values)
    with pytest.raises(ValueError, match=message):
        evaluate(embedder, named, "", say=silent)


def test_labels_are_looked_up_before_anything_is_computed(run_config, shapes):
    check_datasets(run_config.eval, "")
    probe = LinearProbeConfig(shapes, "train", "test", "breed", validation_split="test")
    for config, asks in (
        (EvalConfig(zero_shot=(ZeroShotConfig(shapes, "test", "breed"),)), "zero_shot/test/breed"),
        (EvalConfig(linear_probe=(probe,)), "linear_probe/test/breed"),
    ):
        with pytest.raises(DatasetError, match=rf"no label 'breed', which {asks}.*: \['shape'\]$"):
            check_datasets(config, "")
