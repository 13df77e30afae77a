"""The loader in one process: what batches hold, restoring, skipping, errors."""

import json
import logging
import re
from itertools import permutations

import chex
import numpy as np
import pytest
from picture_source import PictureSource

from rwkv_jax.data.chunks import _StackChunk
from rwkv_jax.data.config import LoaderConfig
from rwkv_jax.data.decode import decode_image
from rwkv_jax.data.loader import evaluation_batches, make_train_loader
from rwkv_jax.data.pairs import Pair, Slot
from rwkv_jax.data.preprocess import resize_center_crop
from rwkv_jax.data.skipped import TooManySkippedError
from rwkv_jax.data.tokenizer import Tokenizer

CONFIG = LoaderConfig(image_size=16, context_length=8)


def loader(source=None, config=CONFIG, *, batch_size=8, seed=0, **processes):
    tokenizer = Tokenizer(config.context_length)
    source = source or PictureSource()
    return make_train_loader(
        source, config, tokenizer, batch_size=batch_size, seed=seed, **processes
    )


def take(batches, count):
    return [next(batches) for _ in range(count)]


def keys_of(batches):
    return [key for batch in batches for key in batch["keys"]]


def epochs_of(batches):
    """The keys of each whole epoch of 37 records."""
    keys = keys_of(batches)
    return [tuple(keys[end - 37 : end]) for end in range(37, len(keys) + 1, 37)]


def test_what_a_batch_holds():
    source = PictureSource()
    with loader(source) as batches:
        for batch in take(batches, 6):
            chex.assert_shape(batch["image"], (8, 16, 16, 3))
            assert batch["image"].dtype == np.uint8
            indices = [int(key[1:]) for key in batch["keys"]]
            expected = [index // 2 if index % 5 else -1 for index in indices]
            np.testing.assert_array_equal(batch["concept"], np.array(expected, np.int32))
            for index, ids, image in zip(indices, batch["text"], batch["image"], strict=True):
                texts = ["red", f"picture {index}", f"number {index}"]
                assert (Tokenizer(8)(texts) == ids).all(axis=1).any()
                whole = decode_image(source[index]["image"])
                difference = image.mean(axis=(0, 1)) - whole.mean(axis=(0, 1))
                assert np.abs(difference).max() < 25


def test_every_epoch_has_every_record_once_in_another_order():
    with loader() as batches:
        epochs = epochs_of(take(batches, 37))
    everything = {f"k{index}" for index in range(37)}
    assert all(set(epoch) == everything for epoch in epochs)
    assert len(set(epochs)) == len(epochs) == 8


def test_crops_and_texts_are_drawn_anew_each_epoch():
    with loader(PictureSource(8)) as batches:
        first, second = take(batches, 2)
    a, b = np.argsort(first["keys"]), np.argsort(second["keys"])
    assert sorted(first["keys"]) == sorted(second["keys"])
    assert (first["image"][a] != second["image"][b]).any(axis=(1, 2, 3)).all()
    assert (first["text"][a] != second["text"][b]).any()


def test_seeds():
    with loader(seed=3) as a, loader(seed=3) as b, loader(seed=4) as other:
        a, b, other = (take(batches, 14) for batches in (a, b, other))
    chex.assert_trees_all_equal(a, b)
    # Not even a shifted epoch is shared.
    epochs = [*epochs_of(a), *epochs_of(other)]
    assert len(set(epochs)) == len(epochs) == 6


def test_flip():
    whole = {"image_size": 16, "context_length": 8, "crop_area": (1.0, 1.0)}
    plain = LoaderConfig(**whole, crop_ratio=(1.2, 1.2), flip_probability=0)
    flipped = LoaderConfig(**whole, crop_ratio=(1.2, 1.2), flip_probability=1)
    with loader(config=plain) as a, loader(config=flipped) as b:
        np.testing.assert_array_equal(next(a)["image"], next(b)["image"][:, :, ::-1])


@pytest.mark.parametrize(
    ("probabilities", "share"),
    [({}, 0.5), ({"label": 1.0, "tags": 3.0}, 0.25), ({"label": 0.0, "tags": 1.0}, 0.0)],
)
def test_texts_are_drawn_by_the_kinds_probabilities(probabilities, share):
    config = LoaderConfig(image_size=4, context_length=8, text_probabilities=probabilities)
    with loader(config=config) as batches:
        ids = np.concatenate([batch["text"] for batch in take(batches, 120)])
    label = Tokenizer(8)(["picture"])[0, 1]
    drawn = (ids[:, 1] == label).mean()
    # 960 draws: a standard deviation is at most 0.016.
    assert abs(drawn - share) < 0.06
    # Within the tags, both are drawn alike; the blank one never.
    red = (ids == Tokenizer(8)(["red"])[0]).all(axis=1).mean()
    assert abs(red - (1 - share) / 2) < 0.06


def test_a_list_is_drawn_whole_or_half_of_it_and_more_in_any_order():
    texts = {"tags": ("a, b,, c, ",), "label": ("d, e",)}
    config = LoaderConfig(image_size=4, context_length=8, list_kinds=("tags",))
    with loader(PictureSource(texts=texts), config) as batches:
        ids = np.concatenate([batch["text"] for batch in take(batches, 120)])
    drawn = {tuple(row) for row in ids}
    lists = (*permutations("abc", 2), *permutations("abc"))  # 6 of two, 6 of three
    assert drawn == {
        tuple(row) for row in Tokenizer(8)([*(", ".join(each) for each in lists), "d, e"])
    }
    # Half of the tags, and of the other half every second is whole, one of six orders: 0.54.
    tags = ids[(ids != Tokenizer(8)(["d, e"])).any(axis=1)]
    whole = (tags == Tokenizer(8)(["a, b, c"])).all(axis=1).mean()
    assert abs(whole - 13 / 24) < 0.08


def test_restoring_gives_the_batches_that_would_have_come():
    source = PictureSource(broken=[3, 20], wordless=[5])
    config = LoaderConfig(image_size=16, context_length=8, max_skipped_share=0.2)
    states, batches = [], []
    with loader(source, config) as uninterrupted:
        for _ in range(14):  # three epochs
            states.append(json.dumps(uninterrupted.get_state()))
            batches.append(next(uninterrupted))
        end = uninterrupted.get_state()
    assert end["skipped"]["broken image"]["count"] >= 4
    for start in (0, 1, 4, 9, 13):
        with loader(source, config) as restored:
            restored.set_state(json.loads(states[start]))
            chex.assert_trees_all_equal(take(restored, 14 - start), batches[start:])
            assert restored.get_state() == end
    with loader(source, config) as rewound:
        take(rewound, 5)
        rewound.set_state(json.loads(states[2]))
        chex.assert_trees_all_equal(next(rewound), batches[2])


def test_broken_records_are_skipped_counted_and_logged_once(caplog):
    source = PictureSource(40, broken=[3, 20], wordless=[5], missing=[6])
    with caplog.at_level(logging.WARNING), loader(source) as batches:
        keys = keys_of(take(batches, 9))  # two epochs of 36
        skipped = batches.skipped
    left_out = {"k3", "k20", "k5", "k6"}
    assert set(keys) == {f"k{index}" for index in range(40)} - left_out
    assert skipped.counts.keys() == {"broken image", "no text", "unreadable record"}
    assert 6 <= skipped.total <= 8
    assert skipped.examples["no text"] == ["k5"]
    messages = "\n".join(record.getMessage() for record in caplog.records)
    assert len(caplog.records) == 4
    assert re.search("skipped k20: broken image: the PNG data is damaged or cut off", messages)
    assert re.search("skipped k5: no text: it has no text of label, tags", messages)
    assert re.search(r"skipped pictures/train\[6\]: unreadable record: .*no_such_folder", messages)


def test_rows_end_before_a_place_without_a_pair():
    pair = Pair("k", np.zeros((4, 4, 3), np.uint8), np.zeros(8, np.int32), 0, 0)
    chunk = _StackChunk(4, 8)([Slot(pair), Slot(None), Slot(pair)])
    assert len(chunk.keys) == len(chunk.image) == 1
    assert len(chunk.skipped) == 3


def test_too_many_broken_records_stop_the_run():
    source = PictureSource(300, broken=range(0, 300, 10))
    says = (
        r"of the \d+ records read from pictures/train were skipped \(\d+\.\d%\), more than"
        r" max_skipped_share = 0.05: \d+ broken image \(k\d+, .*\)"
    )
    with loader(source) as batches, pytest.raises(TooManySkippedError, match=says):
        take(batches, 40)
    everything = LoaderConfig(image_size=16, context_length=8, max_skipped_share=1)
    batches = loader(PictureSource(10, broken=range(10)), everything)
    none = "the last 100 records read from pictures/train were all skipped, and 100 of 100: 100"
    with batches, pytest.raises(TooManySkippedError, match=none):
        next(batches)


@pytest.mark.parametrize(
    ("source", "seed", "says"),
    [
        (PictureSource(content_hash="new"), 0, "content_hash = 'abc', this loader has 'new'"),
        (PictureSource(), 1, "seed = 0, this loader has 1"),
    ],
    ids=["data", "seed"],
)
def test_a_state_of_another_run_is_refused(source, seed, says):
    with loader() as batches:
        state = batches.get_state()
    with loader(source, seed=seed) as other, pytest.raises(ValueError, match=says):
        other.set_state(state)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"batch_size": 38}, "batch_size = 38 in each of 1 processes.* has 37 records"),
        ({"batch_size": 20, "process_count": 2}, "take between 1 and 18"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"process_index": 2, "process_count": 2}, "process_index = 2 of process_count = 2"),
        (
            {"config": LoaderConfig(text_probabilities={"alt": 1})},
            r"\['alt'\].*\['label', 'tags'\]",
        ),
        (
            {"config": LoaderConfig(list_kinds=("tags", "keywords"))},
            r"list_kinds names \['keywords'\].*\['label', 'tags'\]",
        ),
    ],
)
def test_impossible_loaders_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        loader(**arguments)


def test_the_tokenizer_has_to_fit():
    with pytest.raises(ValueError, match="context_length is 9, the loader's 8"):
        make_train_loader(PictureSource(), CONFIG, Tokenizer(9), batch_size=2, seed=0)


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 0},
        {"context_length": 2},
        {"workers": -1},
        {"prefetch": 0},
        {"flip_probability": 1.1},
        {"max_skipped_share": float("nan")},
        {"crop_area": (0.5, 1.2)},
        {"crop_ratio": (2.0, 1.0)},
        {"text_probabilities": {"label": -1.0, "tags": 2.0}},
        {"text_probabilities": {"label": 0.0}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_setting_out_of_range_is_named(change):
    name, value = next(iter(change.items()))
    with pytest.raises(ValueError, match=re.escape(f"LoaderConfig.{name} = {value}, but")):
        LoaderConfig(**change)


def test_a_closed_loader_says_so():
    batches = loader()
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(RuntimeError, match="the loader is closed"):
        next(batches)


def test_evaluation_goes_through_the_source_once_in_order(caplog):
    source = PictureSource(11, broken=[2], missing=[7])
    with caplog.at_level(logging.WARNING):
        batches = list(evaluation_batches(source, image_size=12, batch_size=4))
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 3, 4], [5, 6, 8, 9], [10]]
    for batch in batches:
        for index, image in zip(batch["index"], batch["image"], strict=True):
            expected = resize_center_crop(decode_image(source[index]["image"]), 12)
            np.testing.assert_array_equal(image, expected)
    last = caplog.records[-1].getMessage()
    assert last.startswith("left out 2 of the 11 records of pictures/train: 1 broken image (k2)")


def test_evaluation_of_nothing_readable_is_an_error():
    source = PictureSource(3, broken=range(3))
    with pytest.raises(TooManySkippedError, match="no picture can be read; left out 3 of the 3"):
        list(evaluation_batches(source, image_size=12, batch_size=4))
