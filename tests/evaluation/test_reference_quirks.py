"""Each switch of the authors' evaluation, by hand."""

import doctest

import numpy as np

from rwkv_jax.data.tokenizer import Tokenizer
from rwkv_jax.evaluation import figure, reference_quirks
from rwkv_jax.evaluation.config import RetrievalConfig, ZeroShotConfig
from rwkv_jax.evaluation.embed import token_counts
from rwkv_jax.evaluation.features import EmbeddedSplit, unit_length
from rwkv_jax.evaluation.retrieval import retrieval
from rwkv_jax.evaluation.zero_shot import zero_shot


def split_of(features, texts, labels):
    return EmbeddedSplit(
        name="toy/test",
        content_hash="",
        text_kinds=("caption",),
        class_names={"kind": ("a", "b", "c")},
        features=unit_length(np.array(features, np.float32)),
        index=np.arange(len(features)),
        keys=tuple(map(str, range(len(features)))),
        texts=tuple(texts),
        labels=tuple(labels),
        skipped=0,
    )


def test_worked_examples():
    for module in (reference_quirks, figure):
        failures, examples = doctest.testmod(module)
        assert examples >= 2
        assert failures == 0


def test_integer_logits():
    # cosines of every picture to a, b, c: 0.9960, 0.99995, 0.09; as integers 99, 99, 8
    table = {"a": [1, 0], "b": [1, 0.1], "c": [0, 1]}
    split = split_of([[1, 0.09]] * 3, [{}] * 3, [{"kind": 1}, {"kind": 1}, {"kind": 0}])

    def embed(texts):
        return unit_length(np.array([table[text] for text in texts], np.float32))

    def top_1(**switches):
        config = ZeroShotConfig("toy", "test", "kind", ks=(1,), **switches)
        return {f.name: f.value for f in zero_shot(embed, split, config)}

    plain, cut = top_1(), top_1(integer_logits=True)
    assert plain["zero_shot/test/kind/top_1"] == 2 / 3
    assert cut["zero_shot/test/kind+integer_logits/top_1"] == 1 / 3
    scores = reference_quirks.integer_logits(np.array([[0.279, 0.271, -0.004, -0.279]]))
    assert scores.tolist() == [[27, 27, 0, -27]]
    ranks = reference_quirks.first_of_equals_rank(np.repeat(scores, 4, axis=0), np.arange(4))
    assert ranks.tolist() == [1, 2, 3, 4]


def test_phantom_rows():
    split = split_of([[1, 0], [1, 0]], [{}] * 2, [{"kind": 0}, {"kind": 1}])
    table = {"a": [0, 1], "b": [1, 1], "c": [-1, 0]}
    config = ZeroShotConfig("toy", "test", "kind", ks=(1,), phantom_rows=True)
    found = {
        f.name.rpartition("/")[2]: f
        for f in zero_shot(
            lambda texts: unit_length(np.array([table[t] for t in texts], np.float32)),
            split,
            config,
        )
    }
    # one process in four has a picture and makes room for 120; six of eight have none
    phantoms = reference_quirks.phantom_rows(2)
    assert phantoms == 2 * 119
    assert found["top_1"].name == "zero_shot/test/kind+phantom_rows/top_1"
    assert found["top_1"].value == (1 + phantoms) / (2 + phantoms)
    assert found["mean_per_class"].value == (phantoms / (phantoms + 1) + 1) / 2


def test_caption_prefix():
    split = split_of([[1, 0], [0, 1]], [{"caption": ("dog",)}, {"caption": ("cat",)}], [{}, {}])
    table = {
        "dog": [0, 1],
        "cat": [1, 0],
        "a photo of dog": [1, 0],
        "a photo of cat": [0, 1],
    }

    def first(prefix):
        config = RetrievalConfig("toy", "test", caption_prefix=prefix)
        figures = retrieval(
            lambda texts: np.array([table[text] for text in texts], np.float32), split, config
        )
        return next(iter(figures))

    assert first("")[:2] == ("retrieval/test/text_to_image/R@1", 0.0)
    prefixed = first(reference_quirks.CAPTION_PREFIX)
    assert prefixed[:2] == ("retrieval/test+caption_prefix/text_to_image/R@1", 1.0)


def test_padding_is_told_from_the_end_token():
    ids = Tokenizer(8)(["!", "a cat!", ""])  # "!" has padding's id
    ids = np.concatenate([ids, np.zeros((1, 8), np.int32)])
    assert token_counts(ids).tolist() == [3, 5, 2, 8]
