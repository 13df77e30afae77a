"""Retrieval and zero-shot on features that are written down by hand."""

import numpy as np
import pytest

from rwkv_jax.evaluation.config import RetrievalConfig, ZeroShotConfig
from rwkv_jax.evaluation.features import EmbeddedSplit, unit_length
from rwkv_jax.evaluation.retrieval import collect_texts, picture_concepts, retrieval
from rwkv_jax.evaluation.zero_shot import class_features, zero_shot


def split_of(features, texts, labels=None, class_names=None):
    count = len(features)
    return EmbeddedSplit(
        name="toy/test",
        content_hash="",
        text_kinds=("label", "tags"),
        class_names=class_names or {},
        features=unit_length(np.array(features, np.float32)),
        index=np.arange(count),
        keys=tuple(map(str, range(count))),
        texts=tuple(texts),
        labels=tuple(labels or [{}] * count),
        skipped=0,
    )


def embed_by(table):
    return lambda texts: unit_length(np.array([table[text] for text in texts], np.float32))


def figures_of(figures):
    return {figure.name: figure for figure in figures}


def test_retrieval_by_hand():
    # the cat's label is nearest to the dog's picture, its tags to its own
    gallery = split_of(
        [[1, 0], [0, 1], [-1, 0]],
        [
            {"label": ("cat",), "tags": ("pet, purrs",)},
            {"label": ("dog",), "tags": ("pet, barks",)},
            {"label": ("sun",)},
        ],
    )
    table = {
        "cat": [1, 2],
        "pet, purrs": [3, 1],
        "dog": [0, 1],
        "pet, barks": [1, 3],
        "sun": [-1, 0.1],
    }
    config = RetrievalConfig("toy", "test", ks=(1, 2))
    found = figures_of(retrieval(embed_by(table), gallery, config))
    value = {name.removeprefix("retrieval/test/"): f.value for name, f in found.items()}
    chance = {name.removeprefix("retrieval/test/"): f.chance for name, f in found.items()}
    assert value["text_to_image/R@1"] == pytest.approx(4 / 5)
    assert value["text_to_image/R@2"] == 1
    assert value["label/text_to_image/R@1"] == pytest.approx(2 / 3)
    assert value["tags/text_to_image/R@1"] == 1
    assert value["image_to_text/R@1"] == 1
    # nearest to the cat's picture among labels alone is still "cat"; the sun has no tags
    assert value["label/image_to_text/R@1"] == 1
    assert value["tags/image_to_text/R@1"] == 1
    assert chance["text_to_image/R@1"] == pytest.approx(1 / 3)
    assert chance["tags/text_to_image/R@1"] == pytest.approx(1 / 3)
    assert chance["tags/image_to_text/R@1"] == pytest.approx(1 / 2)
    # two, two and one own text among five
    assert chance["image_to_text/R@1"] == pytest.approx((2 / 5 + 2 / 5 + 1 / 5) / 3)


def test_pictures_of_one_concept_share_their_texts():
    gallery = split_of(
        [[1, 0], [0, 1], [1, 1]],
        [{"label": ("cat",)}, {"label": ("dog",)}, {"label": ("cat",)}],
        [{"concept": 4}, {"concept": 9}, {"concept": 4}],
    )
    concepts = picture_concepts(gallery)
    texts = collect_texts(gallery, concepts)
    assert texts.words == ("cat", "dog")
    assert texts.concept.tolist() == [4, 9]
    config = RetrievalConfig("toy", "test", ks=(1,))
    found = figures_of(retrieval(embed_by({"cat": [1, 1.1], "dog": [1, 1.2]}), gallery, config))
    # "cat" finds the third picture; "dog" finds it too, and that is wrong
    assert found["retrieval/test/text_to_image/R@1"].value == 0.5
    assert found["retrieval/test/text_to_image/R@1"].chance == pytest.approx((2 / 3 + 1 / 3) / 2)


def test_unknown_concepts_are_below_0():
    gallery = split_of([[1, 0], [0, 1]], [{}, {}], [{}, {"concept": 0}])
    assert picture_concepts(gallery).tolist() == [-1, 0]


def test_chance_of_a_kind_is_that_of_its_own_texts():
    gallery = split_of(
        [[1, 0], [0, 1], [1, 1]],
        [{"label": ("cat",)}, {"tags": ("barks",)}, {"label": ("cat",)}],
        [{"concept": 4}, {"concept": 9}, {"concept": 4}],
    )
    config = RetrievalConfig("toy", "test", ks=(1,))
    found = figures_of(retrieval(embed_by({"cat": [1, 0], "barks": [0, 1]}), gallery, config))
    assert found["retrieval/test/label/text_to_image/R@1"].chance == pytest.approx(2 / 3)
    assert found["retrieval/test/tags/text_to_image/R@1"].chance == pytest.approx(1 / 3)


def test_same_words_of_two_concepts_count_against_both():
    gallery = split_of([[1, 0], [0, 1]], [{"label": ("thing",)}, {"label": ("thing",)}])
    config = RetrievalConfig("toy", "test", ks=(1, 2))
    found = figures_of(retrieval(embed_by({"thing": [1, 0]}), gallery, config))
    assert found["retrieval/test/image_to_text/R@1"].value == 0
    assert found["retrieval/test/image_to_text/R@2"].value == 1
    assert found["retrieval/test/text_to_image/R@1"].value == 0.5


def test_mean_and_median_rank_by_hand():
    """Four pictures on a line of angles; the texts' right answers stand at 1, 1, 2 and 4."""
    gallery = split_of(
        [[1, 0], [3, 1], [1, 1], [0, 1]],
        [{"label": (name,)} for name in ("a", "b", "c", "d")],
    )
    table = {"a": [1, 0], "b": [3, 1], "c": [2, 1.1], "d": [1, -1]}
    # cosines of c: 0.876, 0.984, 0.960, 0.482; of d: 0.707, 0.447, 0, -0.707
    found = figures_of(retrieval(embed_by(table), gallery, RetrievalConfig("toy", "test", ks=(1,))))
    text_to_image = "retrieval/test/text_to_image"
    assert found[f"{text_to_image}/R@1"].value == 0.5
    assert found[f"{text_to_image}/mean_rank"].value == (1 + 1 + 2 + 4) / 4
    assert found[f"{text_to_image}/median_rank"].value == 1.5
    assert found[f"{text_to_image}/mean_rank"].chance == 2.5
    assert found[f"{text_to_image}/median_rank"].chance == 2
    # texts by picture: a 1, 0.949, 0.876, 0.707; b 0.949, 1, 0.984, 0.447;
    # c 0.707, 0.894, 0.960, 0; d 0, 0.316, 0.482, -0.707
    image_to_text = "retrieval/test/image_to_text"
    assert found[f"{image_to_text}/mean_rank"].value == (1 + 1 + 1 + 4) / 4
    assert found[f"{image_to_text}/median_rank"].value == 1


def test_split_without_texts():
    with pytest.raises(ValueError, match="toy/test has no texts"):
        list(retrieval(embed_by({}), split_of([[1, 0]], [{}]), RetrievalConfig("toy", "test")))


def test_zero_shot_by_hand():
    names = {"kind": ("animal", "plant", "thing")}
    gallery = split_of(
        [[1, 0], [1, 0.1], [0, 1], [5, 5]],
        [{}] * 4,
        [{"kind": 0}, {"kind": 0}, {"kind": 1}, {"kind": -1}],
        names,
    )
    table = {"animal": [1, 0], "plant": [1, 0.2], "thing": [0, 1]}
    config = ZeroShotConfig("toy", "test", "kind", ks=(1, 2, 5))
    found = figures_of(zero_shot(embed_by(table), gallery, config))
    value = {name.removeprefix("zero_shot/test/kind/"): f.value for name, f in found.items()}
    # "animal" lies 5.7 degrees from the second picture and "plant" 5.6; the fourth has no class
    assert value["top_1"] == pytest.approx(1 / 3)
    assert value["top_2"] == 1
    assert value["top_5"] == 1
    assert value["mean_per_class"] == pytest.approx((1 / 2 + 0) / 2)
    assert found["zero_shot/test/kind/top_2"].chance == pytest.approx(2 / 3)
    assert found["zero_shot/test/kind/top_5"].chance == 1


def test_prompt_ensemble_weighs_templates_alike():
    # a template with long features must not drown the other
    table = {"cat": [100.0, 0.0], "a cat": [0.0, 1.0]}
    features = class_features(lambda texts: embed_by(table)(texts), ["cat"], ["{}", "a {}"])
    np.testing.assert_allclose(features, [[2**-0.5, 2**-0.5]], rtol=1e-6)


def test_zero_shot_without_labels():
    gallery = split_of([[1, 0]], [{}], [{"kind": -1}], {"kind": ("animal",)})
    with pytest.raises(ValueError, match="no picture of toy/test has a known 'kind'"):
        list(zero_shot(embed_by({}), gallery, ZeroShotConfig("toy", "test", "kind")))
