"""One split of a folder whose pictures have classes and no texts."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from rwkv_jax.data.records import DatasetError, Record
from rwkv_jax.evaluation.catalog.layouts import Row

LABEL = "class"


class LabelledFolder:
    """See `rwkv_jax.data.records.Source`. Pictures are read when they are asked for.

    The label is "class"; where pictures may have several classes, "class/NAME" is 0 or 1 for each.
    """

    text_kinds: tuple[str, ...] = ()

    def __init__(self, root: Path, rows: Sequence[Row], split: str, *, several: bool) -> None:
        """Args:
          root: the folder.
          rows: all of it.
          split: the one to take.
          several: whether a picture may have several classes.

        Raises:
          DatasetError: the split has no picture.
        """
        self._root = root
        self._several = several
        self._rows = [row for row in rows if row.split == split]
        self.name = f"{root}/{split}"
        if not self._rows:
            there = ", ".join(sorted({row.split for row in rows})) or "none"
            raise DatasetError(f"{root} has no pictures of the split {split}; its splits: {there}.")
        names = sorted({name for row in rows for name in _split(row.classes)})
        self._place = {name: i for i, name in enumerate(names)}
        self.class_names: dict[str, tuple[str, ...]] = {LABEL: tuple(names)}
        self.content_hash = self._hash()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        record = self.describe(index)
        record["image"] = (self._root / self._rows[index].file).read_bytes()
        return record

    def describe(self, index: int) -> Record:
        """The record without its picture, which is not read."""
        row = self._rows[index]
        if self._several:
            own = set(_split(row.classes))
            labels = {f"{LABEL}/{name}": int(name in own) for name in self._place}
        else:
            labels = {LABEL: self._place[row.classes]}
        return Record(key=row.file, image=b"", texts={}, labels=labels)

    def _hash(self) -> str:
        """Of names, classes and sizes: reading every picture would take too long."""
        digest = hashlib.sha256()
        for row in self._rows:
            path = self._root / row.file
            size = path.stat().st_size if path.is_file() else -1
            digest.update(f"{row.file} {row.classes} {size}\n".encode())
        return digest.hexdigest()


def _split(classes: str) -> list[str]:
    return [name for name in classes.split("|") if name]
