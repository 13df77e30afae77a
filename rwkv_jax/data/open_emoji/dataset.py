"""Prepares open emoji in a data folder, and opens its splits.

A prepared dataset is a folder of TFDS's with `manifest.json` in it. It is built elsewhere and moved
into place whole, so that one which was cut off is never taken for prepared.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rwkv_jax.data.open_emoji.download import fetch
from rwkv_jax.data.open_emoji.emoji import Emoji
from rwkv_jax.data.open_emoji.pictures import Picture, read_pictures
from rwkv_jax.data.open_emoji.render import IMAGE_SIZE, render_all
from rwkv_jax.data.open_emoji.sources import SOURCES, TEXT_KINDS, Sources
from rwkv_jax.data.open_emoji.splits import SPLITS
from rwkv_jax.data.records import DatasetError
from rwkv_jax.data.tfds_source import TfdsSource

NAME = "open_emoji"
VERSION = "1.0.0"


def folder(data_dir: str | Path) -> Path:
    """Where the prepared dataset lies."""
    return Path(data_dir) / NAME / VERSION


def downloads(data_dir: str | Path) -> Path:
    """Where its tarballs lie; they may be put there by hand."""
    return Path(data_dir) / "downloads" / NAME


def read_manifest(data_dir: str | Path) -> dict[str, Any] | None:
    """The manifest of the prepared dataset; None if it is not prepared.

    Raises:
      DatasetError: there is a manifest that cannot be read.
    """
    path = folder(data_dir) / "manifest.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DatasetError(f"{path} is broken. Delete {path.parent} and prepare again.") from error


def open_split(split: str, data_dir: str) -> TfdsSource:
    """Opens a split; labels are concept, group, subgroup and artist.

    Raises:
      DatasetError: there is no such split, or the dataset is not prepared.
    """
    if split not in SPLITS:
        raise DatasetError(f"{NAME} has no split {split!r}; it has {', '.join(SPLITS)}.")
    manifest = read_manifest(data_dir)
    if manifest is None:
        raise DatasetError(
            f"{NAME} is not prepared in {data_dir}. Prepare it with "
            f"`python -m rwkv_jax.data.prepare {NAME} --data-dir {data_dir}`."
        )
    return TfdsSource(f"{NAME}:{VERSION}", split, data_dir, manifest["content_hash"])


def prepare(
    data_dir: str | Path,
    report: Callable[[str], None] = print,
    sources: Sources = SOURCES,
) -> dict[str, Any]:
    """Downloads, matches, renders and writes; gives the manifest. Prepared already: only reads it.

    Args:
      data_dir: the tarballs go to its `downloads/`, the dataset to `open_emoji/`.
      report: called with a line about each step.
      sources: what to make it of; others than SOURCES serve to try the code.

    Raises:
      DatasetError: a download failed, a tarball is not what it should be, or a package that only
        the preparation needs is not installed.
    """
    manifest = read_manifest(data_dir)
    if manifest is not None:
        report(f"{NAME} is prepared already in {folder(data_dir)}.")
        return manifest
    try:
        import resvg_py  # noqa: F401
    except ImportError as error:
        raise DatasetError("Drawing open emoji needs a renderer: pip install resvg-py.") from error
    clock = time.monotonic()

    def done(what: str) -> None:
        nonlocal clock
        now = time.monotonic()
        report(f"{what} ({now - clock:.1f} s)")
        clock = now

    tarballs = fetch(sources.packages, downloads(data_dir))
    done(f"fetched and verified {len(tarballs)} packages")
    pictures, emojis, left_out = read_pictures(sources, tarballs)
    done(f"matched {len(pictures)} pictures with {len(emojis)} emojis")
    report(f"rendering {len(pictures)} pictures ...")
    pngs = render_all([picture.svg for picture in pictures])
    done(f"rendered {len(pngs)} pictures of {IMAGE_SIZE} x {IMAGE_SIZE}")
    manifest = make_manifest(sources, pictures, pngs, left_out)
    _write(sources, pictures, pngs, emojis, manifest, Path(data_dir))
    done(f"wrote {folder(data_dir)}")
    return manifest


def _write(
    sources: Sources,
    pictures: Sequence[Picture],
    pngs: Sequence[bytes],
    emojis: Sequence[Emoji],
    manifest: dict[str, Any],
    data_dir: Path,
) -> None:
    import tensorflow_datasets as tfds

    from rwkv_jax.data.open_emoji.builder import OpenEmoji

    tfds.disable_progress_bar()  # it takes seconds
    final = folder(data_dir)
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data_dir, prefix=".partial-") as temporary:
        builder = OpenEmoji(
            sources=sources, pictures=pictures, pngs=pngs, emojis=emojis, data_dir=temporary
        )
        with contextlib.redirect_stdout(io.StringIO()):  # it speaks of downloading
            builder.download_and_prepare()
        built = folder(temporary)
        (built / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False))
        if read_manifest(data_dir) is not None:
            return  # another process was faster
        if final.exists():  # without a manifest: half deleted
            shutil.rmtree(final)
        os.replace(built, final)


def make_manifest(
    sources: Sources,
    pictures: Sequence[Picture],
    pngs: Sequence[bytes],
    left_out: Counter[str],
) -> dict[str, Any]:
    """Counts, licences and sources of the dataset, and a hash of all that is in it."""
    counts = Counter((picture.split, picture.artist) for picture in pictures)
    concepts = {
        split: len({picture.emoji.code for picture in pictures if picture.split == split})
        for split in SPLITS
    }
    return {
        "name": NAME,
        "version": VERSION,
        "content_hash": content_hash(pictures, pngs),
        "image_size": IMAGE_SIZE,
        "splits": {
            split: {
                "what": what,
                "pictures": sum(counts[split, artist] for artist in sources.artists),
                "concepts": concepts[split],
                "artists": {a: counts[split, a] for a in sources.artists if counts[split, a]},
            }
            for split, what in SPLITS.items()
        },
        "left_out": dict(left_out),
        "text_kinds": {
            kind: {"source": source, "written_by": "people"} for kind, source in TEXT_KINDS.items()
        },
        "sources": [
            {
                "package": package.spec,
                "title": package.title,
                "author": package.author,
                "licence": package.licence,
                "url": package.url,
                "sha512": package.sha512,
            }
            for package in sources.packages
        ],
    }


def content_hash(pictures: Sequence[Picture], pngs: Sequence[bytes]) -> str:
    """sha256 over the records in order of their keys; of pixels rather than PNG bytes, which
    depend on the version of the compressor."""
    import cv2
    import numpy as np

    digest = hashlib.sha256()
    for picture, png in sorted(zip(pictures, pngs, strict=True), key=lambda pair: pair[0].key):
        pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
        assert pixels is not None  # `render` made it
        emoji = picture.emoji
        facts = [picture.split, picture.key, emoji.texts, emoji.group, emoji.subgroup]
        digest.update(json.dumps(facts).encode())
        digest.update(hashlib.sha256(pixels.tobytes()).digest())
    return digest.hexdigest()


def describe(manifest: dict[str, Any]) -> str:
    """The manifest as a person wants to read it."""
    lines = ["", f"{manifest['name']} {manifest['version']}", ""]
    for name, split in manifest["splits"].items():
        artists = ", ".join(f"{artist} {count}" for artist, count in split["artists"].items())
        lines += [
            f"  {name:27s}{split['pictures']:6d} pictures of {split['concepts']} concepts",
            f"  {'':27s}{split['what']}",
            f"  {'':27s}{artists}",
        ]
    lines += ["", "Left out:"]
    lines += [f"  {count:5d} {reason}" for reason, count in manifest["left_out"].items()]
    lines += ["", "Texts, all written by people:"]
    lines += [f"  {kind:8s}{text['source']}" for kind, text in manifest["text_kinds"].items()]
    lines += ["", "Made from (keep this attribution when you show the pictures):"]
    lines += [
        f"  {source['title']:20s} by {source['author']:22s}{source['licence']:14s}{source['url']}"
        for source in manifest["sources"]
    ]
    return "\n".join([*lines, "", f"Content hash {manifest['content_hash']}"])
