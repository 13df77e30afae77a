"""A sample's fields to texts by kind, labels and key. Texts are mended or left out, and counted."""

import csv
import json
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rwkv_jax.data.columns import column_names
from rwkv_jax.data.convert import extra
from rwkv_jax.data.convert.options import Options, Rejected
from rwkv_jax.data.records import DatasetError

KEY_FIELDS = ("key", "__key__", "id", "uid", "image_id", "photoid", "file_name", "filename")
# Kinds that are taken where the command names none, under these names.
TEXT_FIELDS = ("caption", "text", "txt", "title", "description", "raw", "synthetic", "generated")
# Nothing downstream reads more: a text of 77 tokens has a few hundred characters.
_MAX_TEXT = 20_000
_MAX_KEY = 300
# Controls but for tab, newline and return: NULs end strings in C, the others mean nothing here.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

BROKEN_UTF8 = "text is not UTF-8"
CONTROLS = "control characters taken out of a text"
CUT = f"text cut to {_MAX_TEXT} characters"


def clean_key(key: Any) -> str:
    """A printable key: what is no UTF-8 or a control becomes a question mark."""
    text = key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)
    text = text.encode("utf-8", "replace").decode("utf-8")
    return _CONTROLS.sub("?", text)[:_MAX_KEY]


def texts_of(
    key: str,
    fields: Mapping[str, Any],
    options: Options,
    side: Mapping[str, "SideTexts"],
    notes: Counter[str],
) -> dict[str, tuple[str, ...]]:
    """Texts by kind.

    Raises:
        Rejected: there is none.
    """
    named = options.texts or {name: (name,) for name in TEXT_FIELDS if name in fields}
    texts: dict[str, tuple[str, ...]] = {}
    for kind, names in named.items():
        values = [value for name in names for value in _listed(fields.get(name))]
        texts[kind] = tuple(_clean(values, notes))
    for kind, table in side.items():
        texts[kind] = texts.get(kind, ()) + tuple(_clean(table.find(key), notes))
    texts = {kind: tuple(dict.fromkeys(found)) for kind, found in texts.items() if found}
    if not texts:
        tried = dict.fromkeys(name for names in named.values() for name in names)
        looked = ", ".join([*tried, *(f"the side file of {kind}" for kind in side)])
        missing = f"nothing in {looked}" if looked else "no field is known to hold texts"
        raise Rejected("no text", f"{missing}; it has the fields {sorted(fields)[:20]}")
    for kind, found in texts.items():
        notes[f"texts of {kind}"] += len(found)
    return texts


def labels_of(fields: Mapping[str, Any], options: Options) -> dict[str, str]:
    """Class names by label."""
    found = {
        label: _clean(_listed(fields.get(name)), Counter())
        for label, name in options.labels.items()
    }
    return {label: names[0] for label, names in found.items() if names}


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _clean(values: list[Any], notes: Counter[str]) -> list[str]:
    texts = []
    for value in values:
        if value is None or value != value:  # a table's empty cell may be a NaN
            continue
        try:
            # A surrogate stands for a byte that was no UTF-8.
            text = value.decode("utf-8") if isinstance(value, bytes) else str(value)
            text.encode("utf-8")
        except UnicodeError:
            notes[BROKEN_UTF8] += 1
            continue
        without = _CONTROLS.sub("", text)
        if without != text:
            notes[CONTROLS] += 1
        if len(without) > _MAX_TEXT:
            notes[CUT] += 1
        without = without[:_MAX_TEXT].strip()
        if without:
            texts.append(without)
    return texts


class SideTexts:
    """A table of texts by key, in a database: millions of rows would not fit every process."""

    def __init__(self, database: Path):
        uri = f"{database.resolve().as_uri()}?mode=ro&immutable=1"
        self._connection = sqlite3.connect(uri, uri=True, check_same_thread=False)

    def find(self, key: str) -> list[str]:
        rows = self._connection.execute(
            "SELECT text FROM texts WHERE key = ? ORDER BY rowid", (key,)
        )
        return [text for (text,) in rows]


def build_side_texts(kind: str, table: Path, database: Path) -> None:
    """Reads a side table (.csv, .tsv, .jsonl or .parquet) into a database.

    The key column is the first of KEY_FIELDS that it has; the text column has the kind's name, or
    is the only other column.
    """
    if database.exists():
        return
    partial = database.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    connection = sqlite3.connect(partial)
    try:
        connection.execute("CREATE TABLE texts (key TEXT, text TEXT)")
        rows = table_rows(table)
        first = next((row for _, row in rows if isinstance(row, dict)), None)
        if first is None:
            raise DatasetError(f"{table} has no rows")
        key = next((name for name in KEY_FIELDS if name in first), None)
        others = [name for name in first if name != key]
        text = kind if kind in others else others[0] if len(others) == 1 else None
        if key is None or text is None:
            raise DatasetError(
                f"{table} has the columns {list(first)}: as a side file of {kind!r} it needs one of"
                f" {', '.join(KEY_FIELDS)}, and one named {kind!r} or a single other one"
            )
        notes: Counter[str] = Counter()
        pairs = (
            (clean_key(row[key]), found)
            for _, row in table_rows(table)
            if isinstance(row, dict) and row.get(key) is not None
            for found in _clean(_listed(row.get(text)), notes)
        )
        connection.executemany("INSERT INTO texts VALUES (?, ?)", pairs)
        connection.execute("CREATE INDEX by_key ON texts (key)")
        connection.commit()
    finally:
        connection.close()
    os.replace(partial, database)


_DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLE_SUFFIXES = (*_DELIMITERS, ".jsonl", ".ndjson")


def table_rows(table: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line numbers and rows of a table, or what is wrong with a row.

    Raises:
        DatasetError: the header of a .csv or .tsv cannot be read, or has an empty or a repeated
            name.
    """
    if table.suffix.lower() == ".parquet":
        extra.require("pyarrow", str(table))
        import pyarrow.parquet

        number = 0
        with pyarrow.parquet.ParquetFile(table) as file:
            for batch in file.iter_batches(1000):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        return
    csv.field_size_limit(16 * 2**20)
    # Bytes that are no UTF-8 come through as surrogates, and are counted text by text.
    with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if table.suffix.lower() not in _DELIMITERS:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, json_object(line)
            return
        reader = csv.DictReader(file, delimiter=_DELIMITERS[table.suffix.lower()])
        try:
            reader.fieldnames = column_names(reader.fieldnames or (), table)
        except csv.Error as error:
            raise DatasetError(f"{table}, line 1: {error}") from error
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield reader.line_num, str(error)
                continue
            if None in row or None in row.values():
                yield (
                    reader.line_num,
                    f"not as many values as columns ({len(reader.fieldnames or ())})",
                )
            else:
                yield reader.line_num, row


def json_object(text: str | bytes) -> dict[str, Any] | str:
    """The object, or what is wrong with it."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}"
    return found if isinstance(found, dict) else "JSON, but no object"
