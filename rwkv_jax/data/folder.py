"""A folder of pictures with one table of their texts: how to train on your own data.

    pictures/
      texts.csv          file,caption,concept,split
      cats/1.jpg         cats/1.jpg,a cat on a mat,cat,train

The table is the folder's only .csv, .tsv or .jsonl file. Its columns (of JSON lines: their keys):
  file, file_name, filename, image or path: the picture, relative to the folder. Several rows may
    name one picture; it then has the texts of all.
  split: which split the row belongs to. Without this column every row is in "train".
  concept, class, label, or label:NAME: a class. Pictures of one concept count as matches.
  any other: a kind of text, named like the column. In JSON it may be a list of texts.
"""

import csv
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from rwkv_jax.data.columns import column_names
from rwkv_jax.data.records import DatasetError, Record

FILE_COLUMNS = ("file", "file_name", "filename", "image", "path")
LABEL_COLUMNS = ("concept", "class", "label")
LABEL_PREFIX = "label:"
SPLIT_COLUMN = "split"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLE_SUFFIXES = (*_DELIMITERS, ".jsonl")


@dataclass
class _Picture:
    """Attributes: texts by kind; class names by label."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


class FolderSource:
    """One split of a folder. See `Source`. Pictures are read when they are asked for."""

    def __init__(self, path: str, split: str):
        """Args:
          path: the folder.
          split: a name in the table's column `split`; "train" if it has none.

        Raises:
          DatasetError: there is no folder, not exactly one table, no column of files or of texts, a
            column without a name, two of one name, a row that cannot be read, a picture that is
            missing or outside the folder, or no such split.
        """
        self._folder = Path(path).expanduser()
        self.name = f"folder:{path}/{split}"
        table = _find_table(self._folder)
        rows = list(_read_table(table))
        columns = list(dict.fromkeys(column for _, row in rows for column in row))
        self._file_column, self.text_kinds, labels = _roles(columns, table)
        splits = self._collect(rows, labels, table)
        if split not in splits:
            raise DatasetError(f"{table} has no split {split!r}; it has {', '.join(splits)}.")
        _check_present(self._folder, [file for found in splits.values() for file in found], table)
        # Over all splits, so that an index means the same class in each.
        names = {
            label: sorted(
                {
                    p.labels[label]
                    for found in splits.values()
                    for p in found.values()
                    if label in p.labels
                }
            )
            for label in labels.values()
        }
        self.class_names = {label: tuple(found) for label, found in names.items()}
        self._indices = {
            label: {name: index for index, name in enumerate(found)}
            for label, found in names.items()
        }
        self._pictures = list(splits[split].items())
        self.content_hash = self._hash(table)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Record:
        file, picture = self._pictures[index]
        return Record(
            key=file,
            image=(self._folder / file).read_bytes(),
            texts={kind: tuple(texts) for kind, texts in picture.texts.items()},
            labels={
                label: indices[picture.labels[label]] if label in picture.labels else -1
                for label, indices in self._indices.items()
            },
        )

    def _collect(
        self, rows: list[tuple[int, dict[str, Any]]], labels: dict[str, str], table: Path
    ) -> dict[str, dict[str, _Picture]]:
        """Pictures by file, by split. `labels`: label names by column."""
        splits: dict[str, dict[str, _Picture]] = {}
        for line, row in rows:
            file = str(row.get(self._file_column) or "").strip()
            where = f"{table}, line {line}"
            if not file:
                raise DatasetError(f"{where}: the column {self._file_column!r} is empty.")
            if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
                raise DatasetError(
                    f"{where}: {file!r} is outside the folder; give a path relative to it."
                )
            split = str(row.get(SPLIT_COLUMN) or "train").strip()
            picture = splits.setdefault(split, {}).setdefault(file, _Picture())
            for kind in self.text_kinds:
                for text in _texts(row.get(kind), where, kind):
                    picture.texts.setdefault(kind, []).append(text)
            for column, label in labels.items():
                name = str("" if row.get(column) is None else row[column]).strip()
                if name and picture.labels.setdefault(label, name) != name:
                    raise DatasetError(
                        f"{where}: {file!r} has the {label} {name!r}, but an earlier line says "
                        f"{picture.labels[label]!r}."
                    )
        return splits

    def _hash(self, table: Path) -> str:
        """Of the table and the pictures' sizes: reading every picture would take too long."""
        digest = hashlib.sha256(table.read_bytes())
        digest.update(self.name.rpartition("/")[2].encode())
        for file, _ in self._pictures:
            digest.update(f"{file} {(self._folder / file).stat().st_size}\n".encode())
        return digest.hexdigest()


def _find_table(folder: Path) -> Path:
    if not folder.is_dir():
        raise DatasetError(f"There is no folder {folder}.")
    tables = sorted(p for p in folder.iterdir() if p.suffix.lower() in TABLE_SUFFIXES)
    if len(tables) != 1:
        found = ", ".join(table.name for table in tables) or "none"
        raise DatasetError(
            f"{folder} must have exactly one {', '.join(TABLE_SUFFIXES)} file, but it has {found}."
        )
    return tables[0]


def _read_table(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and rows."""
    # A caption may be longer than csv's own limit; the loader cuts it to its context.
    csv.field_size_limit(16 * 1024 * 1024)
    line = 0
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            if table.suffix.lower() == ".jsonl":
                for line, text in enumerate(file, start=1):
                    if text.strip():
                        row = json.loads(text)
                        if not isinstance(row, dict):
                            raise DatasetError(f"{table}, line {line}: not a JSON object.")
                        yield line, row
                return
            reader = csv.DictReader(file, delimiter=_DELIMITERS[table.suffix.lower()], strict=True)
            reader.fieldnames = column_names(reader.fieldnames or (), table)
            for row in reader:
                line = reader.line_num
                if None in row or None in row.values():
                    raise DatasetError(
                        f"{table}, line {line}: not as many values as there are columns "
                        f"({len(reader.fieldnames or ())}); quote texts that contain the separator."
                    )
                yield line, row
    except UnicodeDecodeError as error:
        raise DatasetError(f"{table} is not UTF-8 text ({error.reason}).") from error
    except (csv.Error, json.JSONDecodeError) as error:
        raise DatasetError(f"{table}, near line {line}: {error}.") from error


def _roles(columns: list[str], table: Path) -> tuple[str, tuple[str, ...], dict[str, str]]:
    """The column of files, those of texts, and the label names by column."""
    if not columns:
        raise DatasetError(f"{table} has no rows.")
    files = [column for column in FILE_COLUMNS if column in columns]
    if not files:
        raise DatasetError(
            f"{table} has no column that names the pictures ({', '.join(FILE_COLUMNS)}); "
            f"its columns are {', '.join(columns)}."
        )
    labels = {
        column: column.removeprefix(LABEL_PREFIX)
        for column in columns
        if column in LABEL_COLUMNS or column.startswith(LABEL_PREFIX)
    }
    kinds = tuple(c for c in columns if c not in (files[0], SPLIT_COLUMN) and c not in labels)
    if not kinds:
        raise DatasetError(f"{table} has no column of texts; its columns are {', '.join(columns)}.")
    return files[0], kinds, labels


def _texts(value: Any, where: str, kind: str) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if any(isinstance(text, list | dict) for text in values):
        raise DatasetError(f"{where}: {kind!r} must be a text or a list of texts.")
    return [text for text in (str(v).strip() for v in values if v is not None) if text]


def _check_present(folder: Path, files: list[str], table: Path) -> None:
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        more = ", ..." if len(missing) > 3 else ""
        raise DatasetError(
            f"{len(missing)} of the {len(files)} pictures in {table} are not in the folder: "
            f"{', '.join(missing[:3])}{more}. Add them, or take their rows out."
        )
