"""Views of a source: several splits as one, other labels, only some of its records.

All are `rwkv_jax.data.records.Source`s that can also `describe` a record: give it without its
picture, which is then not even read where the source underneath can do so.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from rwkv_jax.data.records import Record, Source


def describe(source: Source, index: int) -> Record:
    """A record without its picture."""
    record = source.describe(index) if hasattr(source, "describe") else source[index]
    return Record(key=record["key"], image=b"", texts=record["texts"], labels=record["labels"])


class Relabelled:
    """A source whose records are changed one by one, but for the pictures.

    Args:
      source: the records.
      change: from a record and its place to the new record.
      class_names: of the new records.
    """

    text_kinds: tuple[str, ...] = ()

    def __init__(
        self,
        source: Source,
        change: Callable[[Record, int], Record],
        class_names: dict[str, tuple[str, ...]],
    ) -> None:
        self.name = source.name
        self.content_hash = source.content_hash
        self.class_names = class_names
        self._source = source
        self._change = change

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        return self._change(self._source[index], index)

    def describe(self, index: int) -> Record:
        """The record without its picture."""
        return self._change(describe(self._source, index), index)


class Joined:
    """Splits of one dataset, one behind the other."""

    text_kinds: tuple[str, ...] = ()

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = list(sources)
        self._starts = np.cumsum([0, *(len(source) for source in sources)])
        self.name = "+".join(source.name for source in sources)
        self.class_names = sources[0].class_names
        hashes = "".join(source.content_hash for source in sources)
        self.content_hash = hashlib.sha256(hashes.encode()).hexdigest()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Record:
        source, place = self._find(index)
        return source[place]

    def describe(self, index: int) -> Record:
        """The record without its picture."""
        return describe(*self._find(index))

    def _find(self, index: int) -> tuple[Source, int]:
        part = int(np.searchsorted(self._starts, index, "right")) - 1
        return self._sources[part], int(index - self._starts[part])


class Selection:
    """Some records of a source.

    Attributes:
      split: which pictures these are, in words.
    """

    text_kinds: tuple[str, ...] = ()

    def __init__(
        self, source: Source, index: Int[np.ndarray, " n"], *, name: str, split: str
    ) -> None:
        self.name = name
        self.split = split
        self.class_names = source.class_names
        self.content_hash = hashlib.sha256(f"{source.content_hash} {split}".encode()).hexdigest()
        self._source = source
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Record:
        return self._source[int(self._index[index])]

    def describe(self, index: int) -> Record:
        """The record without its picture."""
        return describe(self._source, int(self._index[index]))
