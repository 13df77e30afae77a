"""Pictures and texts to features, in batches of one fixed shape.

Training and eval.py build their `Embedder` with `embedder_from`, so both run one compiled program
on one device with the same batches (the last is padded): the same parameters give the same bits.
Parameters that are spread over the devices of this process are therefore gathered on the first.
The suite, whose sets are large, may spread each batch over a mesh instead.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float32, Int32, UInt8

from rwkv_jax.data.loader import evaluation_batches
from rwkv_jax.data.preprocess import normalise
from rwkv_jax.data.records import Source
from rwkv_jax.data.tokenizer import END_TOKEN, Tokenizer
from rwkv_jax.evaluation.features import EmbeddedSplit, unit_length
from rwkv_jax.evaluation.progress import progress
from rwkv_jax.mesh import BATCH_AXES
from rwkv_jax.models.config import ClipConfig
from rwkv_jax.models.params import Params, model_from_params

EncodeImages = Callable[[UInt8[np.ndarray, "B H W 3"]], Float32[Array, "B D"]]
EncodeTexts = Callable[[Int32[np.ndarray, "B L"]], Float32[Array, "B D"]]
Tokenize = Callable[[list[str]], Int32[np.ndarray, "B L"]]


class Embedder:
    """Encodes pictures and texts with fixed parameters; keeps what it has encoded of texts.

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
            features, _ = self._run(self._encode_texts, self._tokenize(some), "text")
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
        features, lengths, index = [], [], []
        for batch in progress(batches, total, f"encoding {source.name}"):
            some, some_lengths = self._run(self._encode_images, batch["image"], "picture")
            features.append(some)
            lengths.append(some_lengths)
            index.append(batch["index"])
        if not features:
            raise ValueError(f"{source.name} has no picture that can be decoded")
        return EmbeddedSplit.of(
            source, np.concatenate(features), np.concatenate(index), np.concatenate(lengths)
        )

    def known_texts(self) -> tuple[list[str], Float32[np.ndarray, "n D"]]:
        """Every text that was asked for so far, and its features."""
        words = list(self._texts)
        return words, self.texts(words) if words else np.zeros((0, 0), np.float32)

    def _run(
        self, encode: Callable[[Any], Float32[Array, "B D"]], inputs: np.ndarray, what: str
    ) -> tuple[Float32[np.ndarray, "b D"], Float32[np.ndarray, " b"]]:
        missing = self._batch_size - len(inputs)
        padded = np.concatenate([inputs, np.zeros((missing, *inputs.shape[1:]), inputs.dtype)])
        features = np.asarray(jax.device_get(encode(padded)), np.float32)[: len(inputs)]
        if not np.isfinite(features).all():
            raise ValueError(f"a {what} feature is not finite: the parameters are broken")
        return unit_length(features), np.linalg.norm(features, axis=-1)


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _encode_images(
    params: Params, images: UInt8[Array, "B H W 3"], *, config: ClipConfig, dtype: DTypeLike
) -> Float32[Array, "B D"]:
    return model_from_params(config, params, dtype=dtype).encode_image(normalise(images))


@functools.partial(jax.jit, static_argnames=("config", "dtype", "pool_padding"))
def _encode_texts(
    params: Params,
    token_ids: Int32[Array, "B L"],
    *,
    config: ClipConfig,
    dtype: DTypeLike,
    pool_padding: bool,
) -> Float32[Array, "B D"]:
    model = model_from_params(config, params, dtype=dtype)
    return model.encode_text(token_ids, pooled=None if pool_padding else token_counts(token_ids))


def token_counts(token_ids: Int32[Array, "B L"]) -> Int32[Array, " B"]:
    """How many positions each text takes, start and end included. Padding has the id of "!", so
    the end token tells; a row without one (an embedder's own padding) counts whole.
    """
    ends = token_ids == END_TOKEN
    return jnp.where(ends.any(axis=1), jnp.argmax(ends, axis=1) + 1, token_ids.shape[1])


def embedder_from(
    config: ClipConfig,
    params: Params,
    *,
    dtype: DTypeLike,
    batch_size: int,
    pool_padding: bool = True,
    mesh: Mesh | None = None,
) -> Embedder:
    """The embedder of a model; one of other parameters of the same model compiles nothing anew.

    Args:
      config: the model's.
      params: nested dict of arrays, on any devices of this process.
      dtype: the compute dtype, see `rwkv_jax.precision`.
      batch_size: how many pictures or texts are encoded at once.
      pool_padding: see `EvalConfig`.
      mesh: devices that each batch is spread over, its axes `data` and `fsdp` dividing the batch;
        None takes the first device of this process alone.
    """
    whole: jax.Device | NamedSharding = jax.local_devices()[0]
    split: jax.Device | NamedSharding = whole
    if mesh is not None:
        whole = NamedSharding(mesh, PartitionSpec())
        split = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    params = jax.device_put(params, whole)
    options: dict[str, Any] = {"config": config, "dtype": dtype}

    def spread(encode: Any) -> Any:
        def run(inputs: np.ndarray) -> Float32[Array, "B D"]:
            with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
                return encode(params, jax.device_put(inputs, split), **options)

        return run

    return Embedder(
        spread(_encode_images),
        spread(functools.partial(_encode_texts, pool_padding=pool_padding)),
        Tokenizer(config.text.context_length),
        image_size=config.image.image_size,
        batch_size=batch_size,
    )
