"""What a conversion does: everything that decides what is written, and nothing else."""

import dataclasses
import json
from typing import Any, Literal

from rwkv_jax.data.decode import MAX_PIXELS
from rwkv_jax.data.records import DatasetError


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    texts: fields (columns; `txt` and the keys of a tar's json) by kind of text.
    side: tables of texts by kind, joined by key.
    labels: fields by label name.
    image: the field of pictures or of their paths; "" looks for a known name.
    key: the field of keys; "" looks for a known name.
    image_root: relative paths begin here, and no path leads out of it; "" is the table's folder.
    split: the split's name, in the output and for sources that have splits.
    data_dir: where prepared datasets lie (tfds:).
    max_side: larger pictures are made smaller, the longer side to this; 0 leaves them.
    min_side: a picture whose shorter side is less is left out.
    max_pixels: a picture of more is left out, undecoded.
    max_bytes: a larger file is left out, unread.
    duplicates: "keep", "exact" (same file) or "perceptual" (looks the same) leaves out later ones.
    distance: bits of 64 in which the perceptual hashes of two like pictures may differ.
    rows: rows of a table or files of a folder in one shard.
    """

    texts: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    side: dict[str, str] = dataclasses.field(default_factory=dict)
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    image: str = ""
    key: str = ""
    image_root: str = ""
    split: str = "train"
    data_dir: str = "data"
    max_side: int = 0
    min_side: int = 1
    max_pixels: int = MAX_PIXELS
    max_bytes: int = 64 * 2**20
    duplicates: Literal["keep", "exact", "perceptual"] = "exact"
    distance: int = 3
    rows: int = 10_000

    def __post_init__(self) -> None:
        for name, low in (
            *(("max_side", 0), ("min_side", 1), ("max_pixels", 1)),
            *(("max_bytes", 1), ("distance", 0), ("rows", 1)),
        ):
            if getattr(self, name) < low:
                raise DatasetError(f"{name} = {getattr(self, name)}, but it must be {low} or more")
        if self.distance > 15:
            raise DatasetError(
                f"distance = {self.distance} of 64 bits: pictures that differ in more than 15 are"
                " not alike"
            )
        if not self.split or not all(c.isalnum() or c in "-_" for c in self.split):
            raise DatasetError(f"split = {self.split!r}: letters, digits, - and _ only")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Options":
        values: dict[str, Any] = json.loads(text)
        values["texts"] = {kind: tuple(fields) for kind, fields in values["texts"].items()}
        return cls(**values)


class Rejected(Exception):  # noqa: N818 - an outcome, no error
    """A sample is left out. `outcome` is one of few, and counted."""

    def __init__(self, outcome: str, message: str):
        super().__init__(message)
        self.outcome = outcome


@dataclasses.dataclass
class Raw:
    """A sample as a reader found it: nothing is checked yet.

    Attributes:
        fields: texts and other values by name; bytes where nothing says that they are UTF-8.
        image: the encoded file, or the path that the reader was given, or nothing.
        problem: why it cannot be used, if the reader knows that already.
    """

    key: str
    fields: dict[str, Any]
    image: bytes | str | None = None
    problem: Rejected | None = None


@dataclasses.dataclass(frozen=True)
class Unit:
    """A piece of a source that one process converts to one shard.

    Attributes:
        reader: a name of `readers.READERS`.
        start, stop: rows or row groups, where `path` holds more than this unit.
        origin: what the manifest names.
        size: bytes of `path`: a source that changed is another conversion.
    """

    index: int
    reader: str
    path: str
    start: int = 0
    stop: int = 0
    origin: str = ""
    size: int = 0
