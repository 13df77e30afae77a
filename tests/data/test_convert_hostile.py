"""Hostile tars, texts and pictures: counted, never fatal, never a write outside."""

import collections
import json
import tarfile

import fuzz_convert
import numpy as np
import pytest
from picture_files import jpeg, png_header

from rwkv_jax.data.convert.check import check_image
from rwkv_jax.data.convert.duplicates import same_file, same_looks
from rwkv_jax.data.convert.options import Options, Rejected, Unit
from rwkv_jax.data.convert.readers import read_tar
from rwkv_jax.data.convert.run import convert
from rwkv_jax.data.convert.supervise import ConversionError, Worker
from rwkv_jax.data.record_files import RecordFilesSource


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as archive:
        for name, data, *kind in members:
            fuzz_convert.add(archive, name, data, *kind)
    return path


def test_unsafe_names_and_links_are_counted_and_touch_nothing(tmp_path):
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    members = [
        *(("good.jpg", jpeg(0)), ("good.txt", b"fine")),
        *((f"{name}.jpg", jpeg(1)) for name in ("../evil", "/evil", "x/../../evil")),
        *(("link.jpg", b"", tarfile.SYMTYPE), ("pipe.jpg", b"", tarfile.FIFOTYPE)),
        *(("last.jpg", jpeg(2)), ("last.txt", b"fine, too")),
    ]
    write_tar(inside / "t.tar", members)
    before = fuzz_convert.tree(tmp_path, inside / "out")
    manifest = convert([str(inside / "t.tar")], inside / "out", Options())
    assert fuzz_convert.tree(tmp_path, inside / "out") == before
    assert manifest["outcomes"] == {"written": 2}
    assert manifest["notes"]["archive members with an unsafe name"] == 3
    assert manifest["notes"]["archive members that are no files"] == 2


def test_texts_are_mended_or_left_out(tmp_path):
    texts = {
        "nul": b"a\0b",
        "broken": b"caf\xe9",
        "surrogate": b"\xed\xa0\x80",
        "blank": b" \n ",
        "long": b"y" * 30_000,
        "emoji": "🦜".encode(),
    }
    members = [
        m
        for i, (k, t) in enumerate(texts.items())
        for m in ((f"{k}.jpg", jpeg(i)), (f"{k}.txt", t))
    ]
    write_tar(tmp_path / "t.tar", members)
    manifest = convert([str(tmp_path / "t.tar")], tmp_path / "out", Options())
    assert manifest["outcomes"] == {"no text": 3, "written": 3}
    source = RecordFilesSource(str(tmp_path / "out"), "train", "")
    assert [source[i]["texts"]["txt"][0] for i in range(3)] == ["ab", "y" * 20_000, "🦜"]
    assert manifest["notes"]["text is not UTF-8"] == 2
    assert manifest["notes"]["control characters taken out of a text"] == 1


def read(path):
    notes = collections.Counter()
    unit = Unit(0, "tar", str(path))
    return list(read_tar(unit, Options(), notes)), notes


def test_a_tar_that_is_cut_off_gives_what_is_in_front_of_the_cut(tmp_path):
    members = [m for i in range(6) for m in ((f"{i}.jpg", jpeg(i)), (f"{i}.txt", b"t"))]
    path = write_tar(tmp_path / "t.tar", members)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    samples, notes = read(path)
    assert notes["damaged archives"] == 1
    assert 1 <= len(samples) < 6
    assert samples[0].image == jpeg(0)
    for data in (b"", b"no tar at all" * 100, b"\0" * 5, b"\x1f\x8b\x08" + b"\0" * 600):
        path.write_bytes(data)
        assert read(path)[0] == []
    compressed = write_tar(tmp_path / "t.tar.gz", members, "w:gz")
    assert len(read(compressed)[0]) == 6
    compressed.write_bytes(compressed.read_bytes()[:-200])
    assert read(compressed)[1]["damaged archives"] == 1


def test_a_member_larger_than_allowed_is_not_read(tmp_path):
    members = [
        ("big.jpg", b"\0" * 2_000_000),
        ("big.txt", b"t"),
        ("ok.jpg", jpeg(0)),
        ("ok.txt", b"t"),
    ]
    path = write_tar(tmp_path / "t.tar.gz", members, "w:gz")  # 2 kB on disk
    manifest = convert([str(path)], tmp_path / "out", Options(max_bytes=1_000_000))
    assert manifest["outcomes"] == {"file too large": 1, "written": 1}


@pytest.mark.parametrize("size", [(10_000, 10_001), (100_000, 1_001), (2**31 - 1, 2**31 - 1)])
def test_a_header_of_too_many_pixels_is_refused_before_decoding(size):
    with pytest.raises(Rejected) as rejected:
        check_image(png_header(*size), Options())
    assert rejected.value.outcome == "too many pixels"


def test_a_picture_that_kills_or_hangs_the_decoder_costs_itself_only(tmp_path):
    def sized(index, size):
        return jpeg(index) + b"\0" * (size - len(jpeg(index)))

    sizes = (6_000, 7_001, 6_100, 7_002, 6_200)
    members = [
        m
        for i, size in enumerate(sizes)
        for m in ((f"{i}.jpg", sized(i, size)), (f"{i}.txt", b"t"))
    ]
    path = write_tar(tmp_path / "t.tar", members)
    worker = Worker(time_limit=2.0, module="crashing_worker")
    try:
        report = worker.convert(Unit(0, "tar", str(path), origin="t"), Options(), tmp_path)
    finally:
        worker.close()
    assert report["counts"] == {"written": 3, "crashed the decoder": 2}
    assert [e.partition(":")[0] for e in report["examples"]["crashed the decoder"]] == ["1", "3"]


def test_a_shard_that_cannot_be_written_stops_the_conversion(tmp_path):
    path = write_tar(tmp_path / "t.tar", [("a.jpg", jpeg(0)), ("a.txt", b"t")])
    worker = Worker()
    with pytest.raises(ConversionError, match=r"t\.tar \(unit 0\): "):
        worker.convert(Unit(0, "tar", str(path), origin="t.tar"), Options(), tmp_path / "none")
    worker.close()


def test_fuzzed_files(tmp_path):
    manifest = fuzz_convert.run(tmp_path, count=240, seed=1, processes=2)
    # It is no test if nothing was damaged, or nothing left whole.
    assert manifest["outcomes"]["broken image"] > 20
    assert manifest["outcomes"]["written"] > 20
    assert manifest["notes"]["damaged archives"] > 10
    json.dumps(manifest)


def test_same_file_by_hand():
    high = np.array([5, 1, 5, 5, 1], np.uint64)
    low = np.array([1, 1, 2, 1, 1], np.uint64)
    assert same_file(high, low).tolist() == [False, False, False, True, True]
    assert same_file(high[:0], low[:0]).tolist() == []


def test_same_looks_by_hand():
    a = 0xF0F0_F0F0_F0F0_F0F0
    # b is 2 bits from a, c is 2 from b and 4 from a, d is c again, e is 1 from c.
    b, c = a ^ 0b11, a ^ 0b1111
    looks = np.array([a, b, c, c, c ^ 2**63, 0], np.uint64)
    # With 2 bits, b goes (like a), so c stays; d and e go (like c).
    assert same_looks(looks, 2).tolist() == [False, True, False, True, True, False]
    assert same_looks(looks, 0).tolist() == [False, False, False, True, False, False]
    assert same_looks(looks[:0], 3).tolist() == []


@pytest.mark.parametrize("distance", [0, 1, 3, 7])
def test_same_looks_against_every_pair(distance):
    rng = np.random.default_rng(distance)
    centres = rng.integers(0, 2**64, 30, dtype=np.uint64)
    looks = centres[rng.integers(0, 30, 300)]
    for _ in range(6):
        flips = np.uint64(1) << rng.integers(0, 64, 300).astype(np.uint64)
        looks = np.where(rng.random(300) < 0.4, looks ^ flips, looks)
    kept, expected = [], []
    for value in looks.tolist():
        expected.append(any((value ^ k).bit_count() <= distance for k in kept))
        if not expected[-1]:
            kept.append(value)
    assert same_looks(looks, distance).tolist() == expected
    assert 0 < sum(expected) < 300
