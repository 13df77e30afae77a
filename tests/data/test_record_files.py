"""ArrayRecord files: the schema, reading here and from a URL, what is wrong with them."""

import json
import pickle

import fsspec
import msgpack
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from picture_files import jpeg

from rwkv_jax.data.catalog import open_dataset
from rwkv_jax.data.pairs import UNREADABLE, read_record
from rwkv_jax.data.record_files import WRITER_OPTIONS, decode_record, encode_record
from rwkv_jax.data.records import DatasetError, Source


def write(folder, shards=(3, 2), schema=1):
    """Records r0, r1, ... with a class each, alternating."""
    entries, number = [], 0
    for shard, size in enumerate(shards):
        name = f"train-{shard:05d}.arrayrecord"
        writer = ArrayRecordWriter(str(folder / name), WRITER_OPTIONS)
        for _ in range(size):
            labels = {"concept": ("cat", "dog")[number % 2]} if number != 4 else {}
            texts = {"raw": (f"text {number}",)}
            writer.write(encode_record(f"r{number}", jpeg(number), texts, labels))
            number += 1
        writer.close()
        entries.append({"file": name, "records": size, "content_hash": f"{shard:064d}"})
    manifest = {
        "schema": schema,
        "text_kinds": ["raw"],
        "class_names": {"concept": ["cat", "dog"]},
        "content_hash": "f00",
        "shards": entries,
    }
    (folder / "train.manifest.json").write_text(json.dumps(manifest))


def test_records_come_back_from_every_shard_and_process(tmp_path):
    write(tmp_path)
    source = open_dataset(f"records:{tmp_path}", "train", "unused")
    assert isinstance(source, Source)
    assert (len(source), source.text_kinds, source.content_hash) == (5, ("raw",), "f00")
    expected = [
        {
            "key": f"r{i}",
            "image": jpeg(i),
            "texts": {"raw": (f"text {i}",)},
            "labels": {"concept": (0, 1, 0, 1, -1)[i]},
        }
        for i in range(5)
    ]
    assert [source[i] for i in range(5)] == expected
    assert [pickle.loads(pickle.dumps(source))[i] for i in (4, 0)] == [expected[4], expected[0]]
    with pytest.raises(IndexError, match="record 5 of the 5"):
        source[5]


def test_a_url_is_copied_shard_by_shard_when_it_is_read(tmp_path):
    (tmp_path / "made").mkdir()
    write(tmp_path / "made")
    memory = fsspec.filesystem("memory")
    for file in (tmp_path / "made").iterdir():
        memory.pipe(f"/bucket/set/{file.name}", file.read_bytes())
    source = open_dataset("records:memory://bucket/set", "train", str(tmp_path / "data"))
    cache = tmp_path / "data" / "cache"
    assert not cache.exists()
    assert source[4]["key"] == "r4"
    assert len(list(cache.rglob("*.arrayrecord"))) == 1
    assert [source[i]["key"] for i in range(5)] == [f"r{i}" for i in range(5)]
    memory.rm("/bucket/set/train-00000.arrayrecord")
    # What was copied serves the next run, too.
    again = open_dataset("records:memory://bucket/set", "train", str(tmp_path / "data"))
    assert again[0]["key"] == "r0"
    assert sorted(p.suffix for p in cache.rglob("*") if p.is_file()) == [".arrayrecord"] * 2


def test_what_is_missing_or_of_another_version_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"has no split 'val': .*val\.manifest\.json.*--split"):
        open_dataset(f"records:{tmp_path}", "val", "")
    write(tmp_path, schema=99)
    with pytest.raises(DatasetError, match="is of schema 99, this version reads 1"):
        open_dataset(f"records:{tmp_path}", "train", "")
    write(tmp_path)
    (tmp_path / "train-00001.arrayrecord").unlink()
    with pytest.raises(DatasetError, match=r"names train-00001\.arrayrecord, which is not there"):
        open_dataset(f"records:{tmp_path}", "train", "")
    with pytest.raises(DatasetError, match=r"nowhere://x/train\.manifest\.json cannot be"):
        open_dataset("records:nowhere://x", "train", "")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{garbage", r"is damaged \(Expecting property name"),
        ("\udcff", r"is damaged \('utf-8' codec can't decode"),
        ("[1]", r"is damaged: it is \[1\] and no object"),
        ('{"schema": 1}', "is damaged: its 'text_kinds' is None and no list"),
        (
            '{"schema": 1, "text_kinds": [], "class_names": {}, "content_hash": "", '
            '"shards": [{}]}',
            "shard 0, is damaged: its 'file' is None and no str",
        ),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, text, says):
    (tmp_path / "train.manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(
        DatasetError, match=rf"/train\.manifest\.json.* {says}.*convert the dataset"
    ):
        open_dataset(f"records:{tmp_path}", "train", "")


def test_a_damaged_shard_costs_its_records_only(tmp_path):
    write(tmp_path)
    damaged = tmp_path / "train-00000.arrayrecord"
    data = bytearray(damaged.read_bytes())
    at = data.find(jpeg(1))
    data[at : at + 50] = b"\xff" * 50
    damaged.write_bytes(data)
    source = open_dataset(f"records:{tmp_path}", "train", "")
    assert read_record(source, 1).reason == UNREADABLE
    assert source[3]["key"] == "r3"


@pytest.mark.parametrize(
    "entry",
    [b"", b"\xc1", msgpack.packb([1, 2]), msgpack.packb({"key": "a"}), b"\xdf\xff\xff\xff\xff"],
)
def test_what_is_no_record_is_refused(entry):
    with pytest.raises(ValueError, match="an entry is no record"):
        decode_record(entry)


def test_the_same_record_has_the_same_bytes():
    first = encode_record("k", b"i", {"b": ("1",), "a": ("2", "3")}, {"y": "n", "x": "m"})
    second = encode_record("k", b"i", {"a": ("2", "3"), "b": ("1",)}, {"x": "m", "y": "n"})
    assert first == second
    assert decode_record(first)["texts"] == {"a": ["2", "3"], "b": ["1"]}
