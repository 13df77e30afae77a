"""Features of pictures and texts, and what is known of the pictures."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Float32, Int

from rwkv_jax.data.records import Source

EmbedTexts = Callable[[Sequence[str]], Float32[np.ndarray, "n D"]]  # features of length 1


@dataclasses.dataclass(frozen=True)
class EmbeddedSplit:
    """A split's pictures as features, with what is known of each; broken pictures are left out.

    Attributes:
      name: the dataset and the split.
      content_hash: the dataset's.
      text_kinds: the kinds of text that a picture may have.
      class_names: the names of the classes by label name.
      features: [P, D] float32, each of length 1.
      index: [P] each picture's place in the source.
      keys: [P] each picture's key.
      texts: [P] each picture's texts by kind.
      labels: [P] each picture's class indices by label name.
      skipped: how many pictures could not be decoded.
      lengths: [P] each feature's length as the encoder gave it; None where it is not known.
    """

    name: str
    content_hash: str
    text_kinds: tuple[str, ...]
    class_names: dict[str, tuple[str, ...]]
    features: Float32[np.ndarray, "P D"]
    index: Int[np.ndarray, " P"]
    keys: tuple[str, ...]
    texts: tuple[dict[str, tuple[str, ...]], ...]
    labels: tuple[dict[str, int], ...]
    skipped: int
    lengths: Float32[np.ndarray, " P"] | None = None

    @classmethod
    def of(
        cls,
        source: Source,
        features: Float32[np.ndarray, "P D"],
        index: Int[np.ndarray, " P"],
        lengths: Float32[np.ndarray, " P"] | None = None,
    ) -> "EmbeddedSplit":
        """The pictures `index` of `source`, whose features are known."""
        # Without the pictures, which would fill the memory; a source that can does not read them.
        read = source.describe if hasattr(source, "describe") else source.__getitem__
        records = [{**read(int(i)), "image": b""} for i in index]
        return cls(
            name=source.name,
            content_hash=source.content_hash,
            text_kinds=tuple(source.text_kinds),
            class_names=dict(source.class_names),
            features=features,
            index=index,
            keys=tuple(record["key"] for record in records),
            texts=tuple(record["texts"] for record in records),
            labels=tuple(record["labels"] for record in records),
            skipped=len(source) - len(index),
            lengths=lengths,
        )

    def before_normalisation(self) -> Float32[np.ndarray, "P D"]:
        """The features as the encoder gave them, where their lengths are known."""
        return self.features if self.lengths is None else self.features * self.lengths[:, None]

    def label(self, name: str) -> Int[np.ndarray, " P"]:
        """Every picture's class under one label name, -1 where unknown.

        Raises:
          ValueError: the dataset has no such label.
        """
        if name not in self.class_names:
            known = sorted(self.class_names) or "none"
            raise ValueError(f"{self.name} has no label {name!r}; its labels: {known}")
        return np.array([labels.get(name, -1) for labels in self.labels], np.int64)

    def multi_label(self, name: str) -> Float32[np.ndarray, "P classes"]:
        """Which classes of one label name each picture shows: 1, 0, or NaN where unknown.

        A label of which a picture may have several values is written down class by class: for each
        class of `class_names[name]` a record has a label of that class's name: 1, 0 or -1.

        Raises:
          ValueError: the dataset has no such label.
        """
        if name not in self.class_names:
            self.label(name)  # says so
        classes = self.class_names[name]
        values = [[labels.get(each, -1) for each in classes] for labels in self.labels]
        array = np.array(values, np.float32).reshape(len(self.labels), len(classes))
        return np.where(array < 0, np.float32(np.nan), array)

    def is_multi_label(self, name: str) -> bool:
        """Whether the label is written down class by class, see `multi_label`."""
        classes = self.class_names.get(name, ())
        first = self.labels[0] if self.labels else {}
        return bool(classes) and name not in first and all(each in first for each in classes)


def unit_length(features: Float[np.ndarray, "*n D"]) -> Float32[np.ndarray, "*n D"]:
    """Features scaled to length 1; a zero feature stays zero."""
    lengths = np.linalg.norm(features, axis=-1, keepdims=True)
    return (features / np.maximum(lengths, 1e-12)).astype(np.float32)
