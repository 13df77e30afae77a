"""One record to one training pair: decode, draw a text, crop, flip, change colours, tokenise.

Whatever is random comes from the generator that is handed in, so a pair depends on the seed and on
its place in the stream of epochs alone, not on who makes it.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Int32, UInt8

from rwkv_jax.data.colour import jitter_colour
from rwkv_jax.data.config import LoaderConfig
from rwkv_jax.data.decode import ImageError, decode_image
from rwkv_jax.data.preprocess import train_crop
from rwkv_jax.data.records import Record, Source
from rwkv_jax.data.skipped import Skipped
from rwkv_jax.data.tokenizer import END_TOKEN, Tokenizer

# Reasons to skip a record, as they are counted.
BROKEN_IMAGE = "broken image"
NO_TEXT = "no text"
UNREADABLE = "unreadable record"

# Of records that each process keeps in memory.
_CACHE_BYTES = 64 * 2**20


class Pair(NamedTuple):
    key: str
    image: UInt8[np.ndarray, "S S 3"]
    text: Int32[np.ndarray, " L"]
    concept: int


class MakePair:
    """Maps an index of the source and a random generator to a pair, or to why there is none."""

    def __init__(self, source: Source, config: LoaderConfig, tokenizer: Tokenizer):
        self._source = source
        self._config = config
        self._tokenizer = tokenizer
        self._cache: dict[int, Record] = {}
        self._cached_bytes = 0

    def __call__(self, index: int, rng: np.random.Generator) -> Pair | Skipped:
        record = self._read(int(index))
        if isinstance(record, Skipped):
            return record
        key = record["key"]
        text = self._draw_text(record["texts"], rng)
        ids = self._tokenizer([text])[0]
        # A text may be empty only after cleaning ("&nbsp;").
        if ids[1] == END_TOKEN:
            kinds = ", ".join(self._kinds(record["texts"])) or "any kind"
            return Skipped(key, NO_TEXT, f"it has no text of {kinds}")
        try:
            image = decode_image(record["image"])
        except ImageError as error:
            return Skipped(key, BROKEN_IMAGE, str(error))
        config = self._config
        image = train_crop(
            image, config.image_size, rng, area=config.crop_area, ratio=config.crop_ratio
        )
        if rng.random() < config.flip_probability:
            image = cv2.flip(image, 1)
        image = jitter_colour(image, config.colour, rng)
        return Pair(key, image, ids, record["labels"].get("concept", -1))

    def _read(self, index: int) -> Record | Skipped:
        """Keeps a small dataset in memory: parsing a TFDS example costs more than decoding it."""
        if index in self._cache:
            return self._cache[index]
        record = read_record(self._source, index)
        if not isinstance(record, Skipped) and self._cached_bytes < _CACHE_BYTES:
            self._cached_bytes += len(record["image"]) + 1000  # texts and objects, about
            self._cache[index] = record
        return record

    def _draw_text(self, texts: dict[str, tuple[str, ...]], rng: np.random.Generator) -> str:
        """First a kind by its probability among those that have a text, then one of its texts."""
        kinds, weights, choices = [], [], []
        for kind, weight in self._kinds(texts).items():
            present = [text for text in texts.get(kind, ()) if text and not text.isspace()]
            if present and weight > 0:
                kinds.append(kind)
                weights.append(weight)
                choices.append(present)
        if not kinds:
            return ""
        edges = np.cumsum(weights)
        drawn = int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))
        chosen = choices[min(drawn, len(choices) - 1)]
        return chosen[int(rng.integers(len(chosen)))]

    def _kinds(self, texts: dict[str, tuple[str, ...]]) -> dict[str, float]:
        # Sorted: a record read from a file may hold its kinds in another order.
        return self._config.text_probabilities or dict.fromkeys(sorted(texts), 1.0)


def read_record(source: Source, index: int) -> Record | Skipped:
    """The record, or, where its file cannot be read, why not."""
    try:
        return source[index]
    except OSError as error:
        return Skipped(f"{source.name}[{index}]", UNREADABLE, str(error))
