"""A split of a set in the suite's terms: CLIP's classes, and only the pictures that a part takes."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from rwkv_jax.data.records import Record, Source
from rwkv_jax.evaluation.catalog.labelled_folder import LABEL

Labels = dict[str, int]


def describe(source: Source, index: int) -> Record:
    """A record without its picture, which a source that can does not even read."""
    record = source.describe(index) if hasattr(source, "describe") else source[index]
    return Record(key=record["key"], image=b"", texts=record["texts"], labels=record["labels"])


class Selection:
    """Some records of a source, with other keys and labels. See `rwkv_jax.data.records.Source`.

    Attributes:
      split: which pictures these are, in words.
      keys_sha256: of the sorted keys: two runs with the same were judged on the same pictures.
    """

    text_kinds: tuple[str, ...] = ()

    def __init__(
        self,
        source: Source,
        index: Int[np.ndarray, " n"],
        keys: Sequence[str],
        labels: Sequence[Labels],
        *,
        name: str,
        split: str,
        class_names: dict[str, tuple[str, ...]],
    ) -> None:
        self.name = name
        self.split = split
        self.class_names = class_names
        self.content_hash = source.content_hash
        self._source = source
        self._index = index
        self._keys = list(keys)
        self._labels = list(labels)
        self.keys_sha256 = hashlib.sha256("\n".join(sorted(self._keys)).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Record:
        record = self.describe(index)
        record["image"] = self._source[int(self._index[index])]["image"]
        return record

    def describe(self, index: int) -> Record:
        """The record without its picture, which is not read."""
        return Record(key=self._keys[index], image=b"", texts={}, labels=dict(self._labels[index]))


class Joined:
    """Splits of one dataset, one behind the other."""

    text_kinds: tuple[str, ...] = ()

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = list(sources)
        self._starts = np.cumsum([0, *(len(source) for source in sources)])
        self.name = "+".join(source.name for source in sources)
        self.class_names = sources[0].class_names
        hashes = "".join(source.content_hash for source in sources)
        self.content_hash = (
            sources[0].content_hash
            if len(sources) == 1
            else hashlib.sha256(hashes.encode()).hexdigest()
        )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Record:
        return self._at(index, lambda source, place: source[place])

    def describe(self, index: int) -> Record:
        """The record without its picture."""
        return self._at(index, describe)

    def _at(self, index: int, read: Callable[[Source, int], Record]) -> Record:
        part = int(np.searchsorted(self._starts, index, "right")) - 1
        return read(self._sources[part], int(index - self._starts[part]))


def class_of(labels: Sequence[Labels]) -> Int[np.ndarray, " n"]:
    """[n] the class of each record, -1 where unknown or where there are several."""
    return np.array([each.get(LABEL, -1) for each in labels], np.int64)
