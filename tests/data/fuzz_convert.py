"""Corrupted pictures and tars through the converter: `make fuzz`, and a few in the default tests.

    python tests/data/fuzz_convert.py --count 10000 --seed 0

Half of the count are pictures, damaged, in whole tars; half are tars, damaged. It must end, count
every sample it could make out, write nothing outside of its folder, and what it wrote must decode.
"""

import argparse
import io
import pathlib
import tarfile
import tempfile
import time

import numpy as np
from picture_files import encoded, picture, png_header

from rwkv_jax.data.catalog import open_dataset
from rwkv_jax.data.convert.options import Options
from rwkv_jax.data.convert.run import convert
from rwkv_jax.data.decode import ImageError, decode_image

_HOSTILE_NAMES = (
    *("../outside.jpg", "/tmp/outside.jpg", "a/../../outside.jpg", "..", "x\0y.jpg", "." * 300),
    *("con\n.jpg", "\udcff\udcfe.jpg", "a" * 5000 + ".jpg", "-rf.jpg", "$(touch outside).jpg"),
)
_HOSTILE_TEXTS = (
    *(b"", b"\0\0", b"\xff\xfe\xfd", b"a\0b", b"\xed\xa0\x80", b"x" * 100_000),
    *(b'{"a": ' * 3000, "\u202e\U0001f600".encode(), b"NaN", b"[[]]"),
)
_EXTREMES = (b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0")


def whole_files() -> list[bytes]:
    """A picture of every format."""
    base, frames = picture(0, (90, 70)), [picture(i, (30, 30)) for i in range(3)]
    return [
        encoded(base, "JPEG"),
        encoded(base, "JPEG", progressive=True),
        encoded(base.convert("L"), "JPEG"),
        encoded(base.convert("CMYK"), "JPEG"),
        encoded(base, "PNG"),
        encoded(base.convert("RGBA"), "PNG"),
        encoded(base.convert("P"), "PNG"),
        encoded(base.convert("I").convert("I;16"), "PNG"),
        encoded(base, "WEBP"),
        encoded(base, "WEBP", lossless=True),
        encoded(base.convert("P"), "GIF"),
        encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        encoded(base, "BMP"),
        encoded(base, "TIFF"),
        encoded(base, "TIFF", compression="tiff_lzw"),
        encoded(base, "AVIF"),
        png_header(100_000, 1_001),
        png_header(2**31 - 1, 2**31 - 1),
    ]


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three of: flipped bits, a cut, foreign bytes, a piece twice or gone, extreme words."""
    for _ in range(int(rng.integers(1, 4))):
        if not data:
            return data
        at = int(rng.integers(len(data)))
        # Headers are where a decoder decides how much memory it takes.
        at = at % 64 if rng.random() < 0.4 else at
        many = int(rng.integers(1, 40))
        kind = int(rng.integers(6))
        buffer = bytearray(data)
        if kind == 0:
            for place in rng.integers(0, len(buffer), many):
                buffer[int(place)] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del buffer[at:]
        elif kind == 2:
            buffer[at : at + many] = rng.bytes(many)
        elif kind == 3:
            buffer[at:at] = buffer[at : at + many]
        elif kind == 4:
            del buffer[at : at + many]
        else:
            buffer[at : at + 4] = _EXTREMES[int(rng.integers(len(_EXTREMES)))]
        data = bytes(buffer)
    return data


def add(archive: tarfile.TarFile, name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, len(data) if kind == tarfile.REGTYPE else 0
    member.linkname = "/etc/passwd"
    archive.addfile(member, io.BytesIO(data))


def small_tar(files: list[bytes], rng: np.random.Generator) -> bytes:
    """Four samples, some with names, kinds or texts that no honest tar has."""
    out = io.BytesIO()
    form = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)[int(rng.integers(3))]
    with tarfile.open(fileobj=out, mode="w", format=form, errors="surrogateescape") as archive:
        for i in range(4):
            add(archive, f"s{i}.png", files[int(rng.integers(len(files)))])
            texts = _HOSTILE_TEXTS if rng.random() < 0.3 else (b"a text",)
            add(archive, f"s{i}.txt", texts[int(rng.integers(len(texts)))])
            if rng.random() < 0.2:
                add(archive, f"s{i}.json", _HOSTILE_TEXTS[int(rng.integers(len(_HOSTILE_TEXTS)))])
            try:
                if rng.random() < 0.3:
                    name = _HOSTILE_NAMES[int(rng.integers(len(_HOSTILE_NAMES)))]
                    add(archive, name, files[0])
                if rng.random() < 0.2:
                    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
                    add(archive, f"l{i}.jpg", b"", kinds[int(rng.integers(len(kinds)))])
            except ValueError:  # this format cannot say such a name
                continue
    return out.getvalue()


def write_corpus(folder: pathlib.Path, count: int, seed: int) -> int:
    """Writes the tars; gives how many damaged pictures stand in whole ones."""
    rng = np.random.default_rng(seed)
    files = whole_files()
    pictures, tars = count // 2, count - count // 2
    for start in range(0, pictures, 100):
        with tarfile.open(folder / f"pictures-{start:06d}.tar", "w") as archive:
            for i in range(start, min(start + 100, pictures)):
                add(archive, f"p{i}.jpg", damage(files[i % len(files)], rng))
                add(archive, f"p{i}.txt", b"a picture")
    for i in range(tars):
        (folder / f"tar-{i:06d}.tar").write_bytes(damage(small_tar(files, rng), rng))
    return pictures


def tree(folder: pathlib.Path, without: pathlib.Path) -> set[tuple[str, int]]:
    return {
        (str(p), p.lstat().st_mtime_ns if p.is_file() else 0)
        for p in folder.rglob("*")
        if without not in (p, *p.parents)
    }


def run(root: pathlib.Path, count: int, seed: int, processes: int) -> dict:
    """Makes, converts, checks; gives the manifest.

    Raises:
        AssertionError: something was written outside, not counted, or does not decode.
    """
    corpus, out = root / "deep" / "corpus", root / "deep" / "out"
    corpus.mkdir(parents=True)
    pictures = write_corpus(corpus, count, seed)
    before = tree(root, out)
    manifest = convert([str(corpus)], out, Options(max_pixels=10**7), processes=processes)
    assert tree(root, out) == before, "something was written outside of the output"
    names = {p.name for p in out.iterdir()}
    assert names == {"train.manifest.json", *(shard["file"] for shard in manifest["shards"])}
    assert manifest["samples"] == sum(manifest["outcomes"].values()) >= pictures
    assert "unexpected error" not in manifest["outcomes"], manifest["examples"]
    source = open_dataset(f"records:{out}", "train", "")
    unreadable = 0
    for i in range(len(source)):
        record = source[i]
        assert record["texts"]
        assert all("\0" not in t for texts in record["texts"].values() for t in texts)
        try:
            decode_image(record["image"])
        except ImageError:
            unreadable += 1  # two decoders differ on a few; the loader counts those
    manifest["unreadable"] = unreadable
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        manifest = run(pathlib.Path(folder), given.count, given.seed, given.processes)
    print(f"{given.count:,} files of seed {given.seed} in {time.monotonic() - began:.0f} s")
    for name, number in manifest["outcomes"].items():
        print(f"{number:>8,}  {name}")
    for name, number in manifest["notes"].items():
        print(f"{number:>8,}  {name}")
    print(f"{manifest['unreadable']:>8,}  written, but refused by the loader's decoder")


if __name__ == "__main__":
    main()
