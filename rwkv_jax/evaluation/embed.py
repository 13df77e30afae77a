"""Pictures and texts to features, in batches of one fixed shape.

Training and eval.py build their `Embedder` with `embedder_from`, so both run one compiled program
on one device with the same batches (the last is padded): the same parameters give the same bits.
Parameters that are spread over devices are therefore gathered on the first one.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Int32, UInt8

from rwkv_jax.data.loader import evaluation_batches
from rwkv_jax.data.preprocess import normalise
from rwkv_jax.data.records import Source
from rwkv_jax.evaluation.progress import progress
from rwkv_jax.models import bind

EncodeImages = Callable[[UInt8[np.ndarray, "B H W 3"]], Float32[Array, "B D"]]
EncodeTexts = Callable[[Int32[np.ndarray, "B L"]], Float32[Array, "B D"]]
Tokenize = Callable[[list[str]], Int32[np.ndarray, "B L"]]
EmbedTexts = Callable[[Sequence[str]], Float32[np.ndarray, "n D"]]


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


class Embedder:
    """Encodes pictures and texts with fixed parameters; a text is encoded once, however often it
    is asked for.

    Args:
      encode_images: uint8 pictures to features of any length; normalises pixels itself.
      encode_texts: token ids to features of any length.
      tokenize: texts to token ids.
      image_size: side in pixels of the pictures that `encode_images` takes.
      batch_size: how many are encoded at once.
    """

    def __init__(
        self,
        encode_images: EncodeImages,
        encode_texts: EncodeTexts,
        tokenize: Tokenize,
        *,
        image_size: int,
        batch_size: int,
    ) -> None:
        self._encode_images = encode_images
        self._encode_texts = encode_texts
        self._tokenize = tokenize
        self._image_size = image_size
        self._batch_size = batch_size
        self._texts: dict[str, Float32[np.ndarray, " D"]] = {}

    def texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "n D"]:
        """Features of length 1 of each text.

        Raises:
          ValueError: a feature is not finite.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        starts = range(0, len(new), self._batch_size)
        for start in progress(starts, len(starts), "encoding texts"):
            some = new[start : start + self._batch_size]
            features = self._run(self._encode_texts, self._tokenize(some), "text")
            self._texts.update(zip(some, features, strict=True))
        return np.stack([self._texts[text] for text in texts])

    def pictures(self, source: Source) -> EmbeddedSplit:
        """Every picture of `source` that can be decoded, resized and cropped at the centre.

        Raises:
          ValueError: no picture can be decoded, or a feature is not finite.
        """
        batches = evaluation_batches(
            source, image_size=self._image_size, batch_size=self._batch_size
        )
        total = -(-len(source) // self._batch_size)
        features, index = [], []
        for batch in progress(batches, total, f"encoding {source.name}"):
            features.append(self._run(self._encode_images, batch["image"], "picture"))
            index.append(batch["index"])
        if not features:
            raise ValueError(f"{source.name} has no picture that can be decoded")
        return EmbeddedSplit.of(source, np.concatenate(features), np.concatenate(index))

    def known_texts(self) -> tuple[list[str], Float32[np.ndarray, "n D"]]:
        """Every text that was asked for so far, and its features."""
        words = list(self._texts)
        return words, self.texts(words) if words else np.zeros((0, 0), np.float32)

    def _run(
        self, encode: Callable[[Any], Float32[Array, "B D"]], inputs: np.ndarray, what: str
    ) -> Float32[np.ndarray, "b D"]:
        missing = self._batch_size - len(inputs)
        padded = np.concatenate([inputs, np.zeros((missing, *inputs.shape[1:]), inputs.dtype)])
        features = np.asarray(jax.device_get(encode(padded)), np.float32)[: len(inputs)]
        if not np.isfinite(features).all():
            raise ValueError(f"a {what} feature is not finite: the parameters are broken")
        return unit_length(features)


def unit_length(features: Float[np.ndarray, "*n D"]) -> Float32[np.ndarray, "*n D"]:
    """Features scaled to length 1; a zero feature stays zero."""
    lengths = np.linalg.norm(features, axis=-1, keepdims=True)
    return (features / np.maximum(lengths, 1e-12)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _encode_images(
    graphdef: nnx.GraphDef, params: Any, images: UInt8[Array, "B H W 3"]
) -> Float32[Array, "B D"]:
    return bind(graphdef, params).encode_image(normalise(images))


@functools.partial(jax.jit, static_argnums=0)
def _encode_texts(
    graphdef: nnx.GraphDef, params: Any, token_ids: Int32[Array, "B L"]
) -> Float32[Array, "B D"]:
    return bind(graphdef, params).encode_text(token_ids)


def embedder_from(
    graphdef: nnx.GraphDef, params: Any, tokenize: Tokenize, *, image_size: int, batch_size: int
) -> Embedder:
    """The embedder of a model that `nnx.split` gave; new parameters of the same model compile
    nothing anew.

    Args:
      graphdef: of an `RwkvClip`; carries the compute dtype.
      params: its parameters, a nested dict of arrays, on any devices of this process.
      tokenize: texts to token ids of the model's context length.
      image_size: side in pixels of the pictures the model takes.
      batch_size: how many pictures or texts are encoded at once.
    """
    device = jax.local_devices()[0]
    params = jax.device_put(params, device)
    return Embedder(
        lambda images: _encode_images(graphdef, params, jax.device_put(images, device)),
        lambda ids: _encode_texts(graphdef, params, jax.device_put(ids, device)),
        tokenize,
        image_size=image_size,
        batch_size=batch_size,
    )
