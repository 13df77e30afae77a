"""The real open emoji, from the npm registry."""

import pytest

from rwkv_jax.data.catalog import open_dataset
from rwkv_jax.data.open_emoji import dataset

pytestmark = pytest.mark.network


def test_the_real_data_set(tmp_path):
    manifest = dataset.prepare(tmp_path)
    assert {name: split["pictures"] for name, split in manifest["splits"].items()} == {
        "train": 5798,
        "new_artist": 1395,
        "new_concepts": 241,
        "new_concepts_known_artists": 999,
    }
    assert manifest["splits"]["train"]["artists"] == {
        "twemoji": 1377,
        "openmoji": 1383,
        "emojione": 947,
        "fxemoji": 742,
        "fluent": 1349,
    }
    assert manifest["content_hash"] == (
        "09c2feff64e819aaa98c2176dd96e6fb216d6f40f5ac664322fbd0b19e24ee02"
    )
    source = open_dataset("open_emoji", "new_concepts", str(tmp_path))
    assert len(source) == 241
    assert len(source.class_names["group"]) == 8
    assert len(source.class_names["subgroup"]) == 95
