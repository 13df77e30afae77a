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

    @classmethod
    def of(
        cls, source: Source, features: Float32[np.ndarray, "P D"], index: Int[np.ndarray, " P"]
    ) -> "EmbeddedSplit":
        """The pictures `index` of `source`, whose features are known."""
        records = [source[int(i)] for i in index]
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
        )

    def label(self, name: str) -> Int[np.ndarray, " P"]:
        """Every picture's class under one label name, -1 where unknown.

        Raises:
          ValueError: the dataset has no such label.
        """
        if name not in self.class_names:
            known = sorted(self.class_names) or "none"
            raise ValueError(f"{self.name} has no label {name!r}; its labels: {known}")
        return np.array([labels.get(name, -1) for labels in self.labels], np.int64)


def unit_length(features: Float[np.ndarray, "*n D"]) -> Float32[np.ndarray, "*n D"]:
    """Features scaled to length 1; a zero feature stays zero."""
    lengths = np.linalg.norm(features, axis=-1, keepdims=True)
    return (features / np.maximum(lengths, 1e-12)).astype(np.float32)
