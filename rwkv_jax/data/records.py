"""What a dataset hands over: one picture, still encoded, with its texts by kind and its labels.

Pictures stay encoded until a loader's worker decodes them: a record is small and can be pickled,
and TFDS needs no TensorFlow to store it.
"""

from typing import Protocol, TypedDict, runtime_checkable


class Record(TypedDict):
    """One image-text pair, or rather one picture with every text that is known of it.

    Attributes:
      key: names the record within its dataset, for logs and error messages.
      image: an encoded picture (PNG, JPEG, WebP, ...), perhaps broken: the decoder checks.
      texts: by kind, e.g. {"label": ("red heart",), "tags": ("love", "valentine")}. A kind that has
        no text for this picture is absent or has an empty tuple; {} when there are no texts.
      labels: class indices by label name, e.g. {"concept": 17, "group": 3}; -1 where unknown; {} if
        there are none. Two pictures with the same `concept` show the same thing.
    """

    key: str
    image: bytes
    texts: dict[str, tuple[str, ...]]
    labels: dict[str, int]


@runtime_checkable
class Source(Protocol):
    """A split of a dataset with random access, as Grain wants it.

    Picklable, so that worker processes can have it.
    """

    @property
    def name(self) -> str:
        """The dataset and the split, e.g. "open_emoji/train"."""

    @property
    def text_kinds(self) -> tuple[str, ...]:
        """The kinds of text that a record may have."""

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """The names of the classes by label name; a record's label indexes them."""

    @property
    def content_hash(self) -> str:
        """Changes when the data does; stands in results, so that these can be traced to it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class DatasetError(ValueError):
    """A dataset is not there, not prepared, or not as it should be; the message says what to do."""
