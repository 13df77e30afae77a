"""One unit to one shard in the work folder, its records' hashes and a report beside it."""

import dataclasses
import hashlib
import itertools
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_jax.data.convert.check import check_image
from rwkv_jax.data.convert.options import Options, Raw, Rejected, Unit
from rwkv_jax.data.convert.readers import DAMAGED, READERS
from rwkv_jax.data.convert.texts import SideTexts, labels_of, texts_of
from rwkv_jax.data.record_files import WRITER_OPTIONS, encode_record
from rwkv_jax.files import write_atomically

WRITTEN = "written"
READING, CHECKING = "reading", "checking"
CRASHED = "crashed the decoder"
RECODED = "pictures encoded anew"
EXAMPLES = 5
# Of each record, for taking out duplicates over all units.
HASHES = np.dtype([("high", "<u8"), ("low", "<u8"), ("looks", "<u8")])


def shard_file(work: Path, index: int) -> Path:
    return work / f"unit-{index:05d}.arrayrecord"


def hashes_file(work: Path, index: int) -> Path:
    return work / f"unit-{index:05d}.npy"


def report_file(work: Path, index: int) -> Path:
    """Written last: where it is, the unit is done."""
    return work / f"unit-{index:05d}.json"


def side_file(work: Path, kind: str) -> Path:
    return work / f"side-{hashlib.sha256(kind.encode()).hexdigest()[:12]}.sqlite"


def convert_unit(
    unit: Unit,
    options: Options,
    work: Path,
    poison: Collection[int] = (),
    stop: int | None = None,
    tell: Callable[[str, int], None] = lambda phase, ordinal: None,
) -> dict[str, Any]:
    """Reads, checks and writes a unit, and gives its report; one that is done is only read.

    Args:
        poison: samples, by their order in the unit, that took a process down before.
        stop: nothing is read from this sample on: reading it took a process down before.
        tell: called with READING and the order of the sample that is read next, then with CHECKING.

    Raises:
        OSError: the shard cannot be written.
    """
    report_path = report_file(work, unit.index)
    if report_path.exists():
        return json.loads(report_path.read_text("utf-8"))
    from array_record.python.array_record_module import ArrayRecordWriter

    side = {kind: SideTexts(side_file(work, kind)) for kind in options.side}
    counts: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    classes: dict[str, set[str]] = {label: set() for label in options.labels}
    hashes: list[tuple[int, int, int]] = []
    content = hashlib.sha256()
    partial = shard_file(work, unit.index).with_suffix(f".partial-{os.getpid()}")
    writer = ArrayRecordWriter(str(partial), WRITER_OPTIONS)
    try:
        tell(READING, 0)
        samples = READERS[unit.reader](unit, options, notes)
        for ordinal, raw in enumerate(itertools.islice(samples, stop)):
            tell(CHECKING, ordinal)
            try:
                if ordinal in poison:
                    raise Rejected(CRASHED, "a process ended, or took too long, on this sample")
                entry, found, labels = _make_entry(raw, options, side, notes)
            except Rejected as rejected:
                counts[rejected.outcome] += 1
                shown = examples.setdefault(rejected.outcome, [])
                if len(shown) < EXAMPLES:
                    shown.append(f"{raw.key}: {rejected}"[:300])
                tell(READING, ordinal + 1)
                continue
            counts[WRITTEN] += 1
            hashes.append(found)
            for label, name in labels.items():
                classes[label].add(name)
            content.update(len(entry).to_bytes(8, "little") + entry)
            writer.write(entry)
            tell(READING, ordinal + 1)
        if stop is not None:
            notes[f"{DAMAGED}: {Path(unit.path).name}: its reader crashed at sample {stop}"] += 1
            notes[DAMAGED] += 1
    finally:
        writer.close()
    os.replace(partial, shard_file(work, unit.index))
    hashes_partial = hashes_file(work, unit.index).with_suffix(f".partial-{os.getpid()}")
    with open(hashes_partial, "wb") as file:
        np.save(file, np.array(hashes, HASHES))
    os.replace(hashes_partial, hashes_file(work, unit.index))
    report = {
        "unit": dataclasses.asdict(unit),
        "counts": dict(counts),
        "notes": dict(notes),
        "examples": examples,
        "classes": {label: sorted(names) for label, names in classes.items()},
        "content_hash": content.hexdigest(),
    }
    write_atomically(report_path, json.dumps(report, ensure_ascii=False))
    return report


def _make_entry(
    raw: Raw, options: Options, side: dict[str, SideTexts], notes: Counter[str]
) -> tuple[bytes, tuple[int, int, int], dict[str, str]]:
    """The record's bytes, its hashes and its labels. Raises Rejected."""
    try:
        return _checked_entry(raw, options, side, notes)
    except (Rejected, sqlite3.Error):
        raise
    except Exception as error:  # One sample of a million must not end the other units.
        raise Rejected("unexpected error", f"{type(error).__name__}: {error}") from error


def _checked_entry(
    raw: Raw, options: Options, side: dict[str, SideTexts], notes: Counter[str]
) -> tuple[bytes, tuple[int, int, int], dict[str, str]]:
    if raw.problem is not None:
        raise raw.problem
    if raw.image is None:
        raise Rejected("no image", f"it has the fields {sorted(map(str, raw.fields))[:20]}")
    # Texts first: they cost less than the picture.
    mended: Counter[str] = Counter()
    try:
        texts = texts_of(raw.key, raw.fields, options, side, mended)
    except Rejected:
        notes.update(mended)  # says why there is none
        raise
    image = raw.image if isinstance(raw.image, bytes) else _read(raw.image, options)
    checked = check_image(image, options)
    labels = labels_of(raw.fields, options)
    notes.update(mended)
    notes[RECODED] += checked.recoded
    entry = encode_record(raw.key, checked.data, texts, labels)
    high, low = (int.from_bytes(checked.digest[i : i + 8], "little") for i in (0, 8))
    return entry, (high, low, checked.looks), labels


def _read(path: str, options: Options) -> bytes:
    try:
        # A named pipe or a device would never end.
        if not os.path.isfile(path):
            raise Rejected("missing file", path)
        size = os.path.getsize(path)
        if size > options.max_bytes:
            raise Rejected("file too large", f"{size} bytes, more than {options.max_bytes}")
        return Path(path).read_bytes()
    except OSError as error:
        raise Rejected("missing file", str(error)) from None
