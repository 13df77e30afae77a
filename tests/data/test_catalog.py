"""Datasets by name: any that TFDS has prepared, and what is said of those that are not there."""

import pickle
import shutil

import cv2
import numpy as np
import pytest

from rwkv_jax.data.catalog import open_dataset
from rwkv_jax.data.records import DatasetError, Source

CAPTIONS = [["a red square", "red"], ["a green square"], []]


def png(colour: tuple[int, int, int]) -> bytes:
    image = np.full((8, 8, 3), colour, np.uint8)
    return cv2.imencode(".png", image)[1].tobytes()


PICTURES = [png((0, 0, 255)), png((0, 255, 0)), png((255, 0, 0))]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Two datasets that TFDS wrote: one with pictures, one without."""
    import tensorflow_datasets as tfds

    class Squares(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.2.0")

        def _info(self):
            features = {
                "image": {
                    "png": tfds.features.Image(encoding_format="png"),
                    "filename": tfds.features.Text(),
                },
                "captions": tfds.features.Sequence(tfds.features.Text()),
                "title": tfds.features.Text(),
                "colour": tfds.features.ClassLabel(names=["red", "green", "blue"]),
                "size": np.int32,
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for index, picture in enumerate(PICTURES):
                yield (
                    index,
                    {
                        "image": {"png": picture, "filename": f"{index}.png"},
                        "captions": CAPTIONS[index],
                        "title": f"Größe {index}",
                        "colour": index,
                        "size": 8,
                    },
                )

    class NoPictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield 0, {"text": "a"}

    folder = str(tmp_path_factory.mktemp("tfds"))
    for builder in (Squares, NoPictures):
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_any_tfds_dataset(data_dir):
    source = open_dataset("tfds:squares", "train", data_dir)
    assert isinstance(source, Source)
    assert source.name == "squares/1.2.0/train"
    assert source.text_kinds == ("captions", "title")
    assert source.class_names == {"colour": ("red", "green", "blue")}
    assert [source[index] for index in range(3)] == [
        {
            "key": "0.png",
            "image": PICTURES[0],
            "texts": {"captions": ("a red square", "red"), "title": ("Größe 0",)},
            "labels": {"colour": 0},
        },
        {
            "key": "1.png",
            "image": PICTURES[1],
            "texts": {"captions": ("a green square",), "title": ("Größe 1",)},
            "labels": {"colour": 1},
        },
        {
            "key": "2.png",
            "image": PICTURES[2],
            "texts": {"title": ("Größe 2",)},
            "labels": {"colour": 2},
        },
    ]


def test_versions_and_parts_of_splits(data_dir):
    whole = open_dataset("tfds:squares:1.2.0", "train", data_dir)
    rest = open_dataset("tfds:squares:1.2.0", "train[1:]", data_dir)
    assert (len(whole), len(rest)) == (3, 2)
    assert rest[0]["key"] == "1.png"
    assert whole.content_hash != rest.content_hash
    assert pickle.loads(pickle.dumps(rest))[1] == whole[2]


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        (
            "tfds:circles",
            "train",
            r"'circles' is not prepared in .*tfds\.builder\('circles', data_dir=",
        ),
        ("tfds:squares:9.9.9", "train", r"'squares:9\.9\.9' is not prepared in"),
        ("tfds:squares", "test", r"squares has no split 'test'; it has train"),
        ("tfds:no_pictures", "train", r"exactly one image feature, but it has none"),
        ("tfds:", "train", r"There is no dataset 'tfds:'"),
        (
            "open_emojis",
            "train",
            r"There is no dataset 'open_emojis'\. Known are: open_emoji; records:DIR.*; tfds:",
        ),
        ("open_emoji", "train", r"not prepared in .*python -m rwkv_jax\.data\.prepare open_emoji"),
    ],
)
def test_what_is_not_there_is_one_clear_error(data_dir, name, split, message):
    with pytest.raises(DatasetError, match=message):
        open_dataset(name, split, data_dir)


def test_a_format_without_random_access_is_refused(data_dir, tmp_path):
    shutil.copytree(f"{data_dir}/squares", tmp_path / "squares")
    info = tmp_path / "squares" / "1.2.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DatasetError, match=r"stored as tfrecord.*--file_format array_record"):
        open_dataset("tfds:squares", "train", str(tmp_path))
