"""All units to the dataset: duplicates of all units taken out, shards put into place, the manifest.

The manifest comes last: a folder that has one is whole.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_jax.data.convert.duplicates import same_file, same_looks
from rwkv_jax.data.convert.options import Options
from rwkv_jax.data.convert.readers import DAMAGED
from rwkv_jax.data.convert.unit import EXAMPLES, HASHES, WRITTEN, hashes_file, shard_file
from rwkv_jax.data.record_files import (
    SCHEMA_VERSION,
    WRITER_OPTIONS,
    decode_record,
    manifest_name,
)
from rwkv_jax.files import write_atomically

DUPLICATE, LIKE = "same file as an earlier one", "looks like an earlier one"


def finish(
    reports: Sequence[dict[str, Any]],
    plan: dict[str, Any],
    options: Options,
    work: Path,
    out: Path,
    done: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Writes the shards and the manifest, which it gives.

    Args:
        reports: of every unit, in order.
        plan: what it was made of; the same command again finds it done.
        done: called once a unit.
    """
    numbers = [report["unit"]["index"] for report in reports]
    hashes = [np.load(hashes_file(work, number), allow_pickle=False) for number in numbers]
    repeats = _repeats(np.concatenate([*hashes, np.empty(0, HASHES)]), options)
    counts: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    shards, content, start = [], hashlib.sha256(), 0
    for number, report, found in zip(numbers, reports, hashes, strict=True):
        reasons = repeats[start : start + len(found)]
        start += len(found)
        counts.update(report["counts"])
        for note, count in report["notes"].items():
            archive = note.removeprefix(f"{DAMAGED}: ")
            if archive == note:
                notes[note] += count
            else:
                _show(examples, DAMAGED, [archive])
        for outcome, shown in report["examples"].items():
            _show(examples, outcome, shown)
        left_out = np.flatnonzero(reasons)
        kept = len(found) - len(left_out)
        counts[WRITTEN] -= len(left_out)
        name = f"{options.split}-{number:05d}.arrayrecord"
        digest = report["content_hash"]
        if len(left_out):
            for row, key in zip(left_out, _keys(shard_file(work, number), left_out), strict=True):
                reason = (DUPLICATE, LIKE)[reasons[row] - 1]
                counts[reason] += 1
                _show(examples, reason, [key])
        if kept and len(left_out):
            digest = _filter(shard_file(work, number), out / name, reasons == 0, work)
        elif kept:
            _link(shard_file(work, number), out / name, work)
        if kept:
            shards.append({"file": name, "records": kept, "content_hash": digest})
            content.update(digest.encode())
        done()
    kinds = sorted(n.removeprefix("texts of ") for n in notes if n.startswith("texts of "))
    manifest = {
        "schema": SCHEMA_VERSION,
        "split": options.split,
        "records": sum(shard["records"] for shard in shards),
        "text_kinds": kinds,
        "class_names": {
            label: sorted({name for report in reports for name in report["classes"][label]})
            for label in options.labels
        },
        "content_hash": content.hexdigest(),
        "samples": sum(counts.values()),
        "outcomes": {name: counts[name] for name in sorted(counts) if counts[name]},
        "examples": {name: examples[name] for name in sorted(examples)},
        "notes": {name: notes[name] for name in sorted(notes) if notes[name]},
        "plan": plan,
        "shards": shards,
    }
    write_atomically(
        out / manifest_name(options.split),
        json.dumps(manifest, indent=1, ensure_ascii=False) + "\n",
    )
    return manifest


def _repeats(hashes: np.ndarray, options: Options) -> np.ndarray:
    """Of each record: 0 to keep, 1 for the same file, 2 for the same looks; int8 [n]."""
    reasons = np.zeros(len(hashes), np.int8)
    if options.duplicates == "keep":
        return reasons
    reasons[same_file(hashes["high"], hashes["low"])] = 1
    if options.duplicates == "perceptual":
        left = np.flatnonzero(reasons == 0)
        reasons[left[same_looks(hashes["looks"][left], options.distance)]] = 2
    return reasons


def _show(examples: dict[str, list[str]], outcome: str, keys: Sequence[str]) -> None:
    shown = examples.setdefault(outcome, [])
    shown += keys[: EXAMPLES - len(shown)]


def _keys(shard: Path, rows: np.ndarray) -> list[str]:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    with ArrayRecordDataSource(str(shard)) as source:
        return [decode_record(source[int(row)])["key"] for row in rows]


def _filter(shard: Path, target: Path, keep: np.ndarray, work: Path) -> str:
    """Writes the shard without some of its records; gives the content's hash."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    from array_record.python.array_record_module import ArrayRecordWriter

    content = hashlib.sha256()
    partial = work / f"{target.name}.partial"
    writer = ArrayRecordWriter(str(partial), WRITER_OPTIONS)
    try:
        with ArrayRecordDataSource(str(shard)) as source:
            for row in np.flatnonzero(keep):
                entry = source[int(row)]
                content.update(len(entry).to_bytes(8, "little") + entry)
                writer.write(entry)
    finally:
        writer.close()
    os.replace(partial, target)
    return content.hexdigest()


def _link(shard: Path, target: Path, work: Path) -> None:
    """The same file under its final name; the work folder keeps its own until all is done."""
    partial = work / f"{target.name}.partial"
    partial.unlink(missing_ok=True)
    try:
        os.link(shard, partial)
    except OSError:  # a file system without links
        shutil.copyfile(shard, partial)
    os.replace(partial, target)
