"""One stream for any number of processes; mixtures; kinds of text that follow the step."""

import collections
import json

import chex
import numpy as np
import pytest
from picture_source import PictureSource

from rwkv_jax.data.config import LoaderConfig, MixturePart, TextPoint
from rwkv_jax.data.loader import make_train_loader
from rwkv_jax.data.mixture import MixtureSource
from rwkv_jax.data.records import DatasetError
from rwkv_jax.data.stream import Share
from rwkv_jax.data.tokenizer import Tokenizer

CONFIG = LoaderConfig(image_size=8, context_length=8, max_skipped_share=0.3)
GLOBAL_BATCH = 8
SOURCE = PictureSource(37, broken=[3, 20, 36], wordless=[5], missing=[9])


def loaders(count, *, source=SOURCE, config=CONFIG, state=None):
    made = [
        make_train_loader(
            source,
            config,
            Tokenizer(8),
            batch_size=GLOBAL_BATCH // count,
            seed=5,
            process_index=index,
            process_count=count,
        )
        for index in range(count)
    ]
    for loader in made if state is not None else ():
        loader.set_state(json.loads(json.dumps(state)))
    return made


def global_batches(made, steps):
    """What the devices see: the processes' batches one behind the other."""
    batches = []
    for _ in range(steps):
        parts = [next(loader) for loader in made]
        batches.append({k: np.concatenate([np.asarray(p[k]) for p in parts]) for k in parts[0]})
    return batches


def close(made):
    for loader in made:
        loader.close()


@pytest.fixture(scope="module")
def uninterrupted():
    (loader,) = loaders(1)
    with loader:
        batches = global_batches([loader], 15)  # more than three epochs
        assert loader.skipped.total > 8
    return batches


@pytest.mark.parametrize("count", [2, 4])
def test_the_global_batches_do_not_depend_on_the_number_of_processes(uninterrupted, count):
    made = loaders(count)
    chex.assert_trees_all_equal(global_batches(made, 15), uninterrupted)
    # Each process left something else out, which must not show in the position.
    assert len({loader.skipped.total for loader in made}) > 1
    assert {loader.get_state()["position"] for loader in made} == {15 * GLOBAL_BATCH}
    close(made)


@pytest.mark.parametrize(("before", "after"), [(4, 1), (4, 2), (1, 4), (2, 4), (2, 1)])
def test_a_state_goes_on_in_another_number_of_processes(uninterrupted, before, after):
    made = loaders(before)
    global_batches(made, 7)
    for saved_by in {0, before - 1}:  # any process's state serves all
        resumed = loaders(after, state=made[saved_by].get_state())
        chex.assert_trees_all_equal(global_batches(resumed, 8), uninterrupted[7:])
        close(resumed)
    close(made)


def test_a_run_that_changes_its_processes_often_sees_every_record_as_one_that_does_not():
    source = PictureSource(40)
    state, keys = None, []
    for count in (1, 4, 2, 4, 1):
        made = loaders(count, source=source, state=state)
        keys += [key for batch in global_batches(made, 2) for key in batch["keys"]]
        state = made[-1].get_state()
        close(made)
    # Two epochs of five batches of eight.
    assert sorted(keys[:40]) == sorted(keys[40:]) == sorted(f"k{i}" for i in range(40))


def test_a_broken_records_place_is_taken_by_a_whole_one(uninterrupted):
    keys = [key for batch in uninterrupted[:4] for key in batch["keys"]]
    assert not {"k3", "k20", "k36", "k5"} & set(keys)
    (whole,) = loaders(1, source=PictureSource(37))
    with whole:
        expected = [key for batch in global_batches([whole], 4) for key in batch["keys"]]
    left_out = {"k3", "k20", "k36", "k5", "k9"}
    # Everything else stands where it would have stood.
    assert all(a == b for a, b in zip(keys, expected, strict=True) if b not in left_out)
    assert sum(a != b for a, b in zip(keys, expected, strict=True)) >= 3


def test_positions_worked_out_by_hand():
    share = Share(batch_size=2, process=1, processes=3)  # rows 2 and 3 of batches of 6
    assert [share.position(100, i) for i in range(5)] == [102, 103, 108, 109, 114]


def named(name, size, classes, *, kind=PictureSource, **arguments):
    source = kind(size, **arguments)
    source.name, source.class_names = name, classes
    return source


class _Renamed(PictureSource):
    """Another dataset: its own keys, its own list of classes and kinds of text."""

    text_kinds = ("caption", "tags")

    def __getitem__(self, index: int):
        record = super().__getitem__(index)
        texts = {"caption": record["texts"]["label"], "tags": record["texts"]["tags"]}
        labels = {"concept": index % 2}
        return record | {"key": f"b{index}", "texts": texts, "labels": labels}


class _Unlabelled(PictureSource):
    def __getitem__(self, index: int):
        return super().__getitem__(index) | {"labels": {"concept": -1}}


def mixture(weights=(3.0, 1.0)):
    first = named("first", 12, {"concept": tuple(f"c{i}" for i in range(6))}, broken=[2])
    second = named("second", 30, {"concept": ("new", "c4")}, kind=_Renamed)
    return MixtureSource([first, second], weights)


def test_a_mixtures_records():
    source = mixture()
    assert len(source) == 42
    assert source.text_kinds == ("caption", "label", "tags")
    assert source.class_names == {"concept": (*(f"c{i}" for i in range(6)), "new")}
    assert source[11] == {**source._sources[0][11], "labels": {"concept": 5}}
    assert [source[i]["labels"]["concept"] for i in (12, 13)] == [6, 4]  # new, c4
    assert (source[12]["key"], source[41]["key"]) == ("b0", "b29")
    assert source.name == "mixture(first * 3, second * 1)"
    assert source.content_hash != mixture((1.0, 1.0)).content_hash


def test_an_unknown_label_stays_unknown_in_a_mixture():
    source = named("unlabelled", 4, {"concept": ("a", "b")}, kind=_Unlabelled)
    assert MixtureSource([source], [1.0])[3]["labels"] == {"concept": -1}


def test_a_mixture_keeps_its_weights_and_each_parts_epochs():
    (loader,) = loaders(1, source=mixture())
    with loader:
        batches = global_batches([loader], 32)
    keys = [key for batch in batches for key in batch["keys"]]
    # 3 to 1, in every stretch, not only on the average.
    for start in range(0, 256, 32):
        share = sum(key[0] == "k" for key in keys[start : start + 32])
        assert abs(share - 24) <= 1
    second = [key for key in keys if key[0] == "b"][:30]
    assert sorted(second) == sorted(f"b{i}" for i in range(30))
    # A broken record's place stays with its dataset.
    assert "k2" not in keys
    counts = collections.Counter(key for key in keys if key[0] == "k")
    assert sum(counts.values()) in (191, 192, 193)
    assert set(counts) == {f"k{i}" for i in range(12)} - {"k2"}


def test_parts_of_a_mixture_are_shuffled_apart():
    parts = [named("first", 30, {}), named("second", 30, {}, kind=_Renamed)]
    (loader,) = loaders(1, source=MixtureSource(parts, (1.0, 1.0)))
    with loader:
        keys = [key for batch in global_batches([loader], 8) for key in batch["keys"]]
    first, second = ([key[1:] for key in keys if key[0] == part][:30] for part in "kb")
    assert sorted(first) == sorted(second)
    assert first != second


def test_a_mixture_goes_on_in_another_number_of_processes():
    (loader,) = loaders(1, source=mixture())
    expected = global_batches([loader], 9)
    made = loaders(4, source=mixture())
    global_batches(made, 4)
    resumed = loaders(2, source=mixture(), state=made[1].get_state())
    chex.assert_trees_all_equal(global_batches(resumed, 5), expected[4:])
    close([loader, *made, *resumed])


@pytest.mark.parametrize("weights", [(1.0, 0.0), (1.0, float("nan"))])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(DatasetError, match="second has 30 records and the weight"):
        mixture(weights)
    with pytest.raises(ValueError, match="must be above 0"):
        MixturePart("open_emoji", "train", weights[1])


SCHEDULE = (
    TextPoint(10, {"label": 4.0}),
    TextPoint(20, {"label": 1.0, "tags": 1.0}),
    TextPoint(40, {"tags": 2.0}),
)


def test_probabilities_between_points_worked_out_by_hand():
    config = LoaderConfig(text_schedule=SCHEDULE)
    expected = {
        **{0: (1, 0), 10: (1, 0), 15: (0.75, 0.25), 20: (0.5, 0.5)},
        **{30: (0.25, 0.75), 40: (0, 1), 1000: (0, 1)},
    }
    for step, (label, tags) in expected.items():
        found = config.text_probabilities_at(step)
        np.testing.assert_allclose(
            (found.get("label", 0), found.get("tags", 0)), (label, tags), atol=1e-12
        )


def test_kinds_follow_the_step_and_are_told():
    config = LoaderConfig(image_size=8, context_length=8, text_schedule=SCHEDULE)
    (loader,) = loaders(1, source=PictureSource(), config=config)
    with loader:
        assert loader.text_kinds == ("label", "tags")
        batches = global_batches([loader], 60)
    label = Tokenizer(8)(["picture"])[0, 1]
    for batch in batches:
        assert batch["kind"].dtype == np.int32
        np.testing.assert_array_equal(batch["kind"] == 0, batch["text"][:, 1] == label)
    kinds = np.stack([batch["kind"] for batch in batches])  # [steps, B]
    assert not kinds[:11].any()
    assert kinds[40:].all()
    # 160 draws whose share of tags goes from 0.5 to 1.
    assert abs(kinds[20:40].mean() - 0.74) < 0.1
    # The position knows the step: a restart, in other processes too, draws the same.
    made = loaders(2, source=PictureSource(), config=config)
    global_batches(made, 17)
    resumed = loaders(4, source=PictureSource(), config=config, state=made[0].get_state())
    chex.assert_trees_all_equal(global_batches(resumed, 10), batches[17:27])
    close([*made, *resumed])


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ((TextPoint(3, {"a": 1.0}), TextPoint(3, {"a": 1.0})), "rising steps"),
        ((TextPoint(-1, {"a": 1.0}),), "rising steps"),
        ((TextPoint(0, {"a": 0.0}),), "at step 0 = .*not all 0"),
        ((TextPoint(0, {}),), "name probabilities"),
    ],
)
def test_impossible_schedules_are_refused(schedule, says):
    with pytest.raises(ValueError, match=says):
        LoaderConfig(text_schedule=schedule)
    with pytest.raises(ValueError, match="empty where text_schedule"):
        LoaderConfig(text_probabilities={"label": 1.0}, text_schedule=SCHEDULE)
    config = LoaderConfig(context_length=8, text_schedule=(TextPoint(0, {"alt": 1.0}),))
    with pytest.raises(ValueError, match=r"text_schedule names \['alt'\]"):
        loaders(1, config=config)
