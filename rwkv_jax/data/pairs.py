"""One place of the stream to one training pair: decode, draw a text, crop, flip, change colours.

Whatever is random comes from the generator that is handed in, so a pair depends on the seed and on
its place in the stream of epochs alone, not on who makes it.
"""

from collections.abc import Mapping
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Int32, UInt8

from rwkv_jax.data.colour import jitter_colour
from rwkv_jax.data.config import LoaderConfig
from rwkv_jax.data.decode import ImageError
from rwkv_jax.data.mixture import MixtureSource
from rwkv_jax.data.records import Record, Source
from rwkv_jax.data.skipped import Skipped
from rwkv_jax.data.tokenizer import END_TOKEN, Tokenizer
from rwkv_jax.data.train_crop import decode_train_crop

# Reasons to skip a record, as they are counted.
BROKEN_IMAGE = "broken image"
NO_TEXT = "no text"
UNREADABLE = "unreadable record"

# Of records that each process keeps in memory.
_CACHE_BYTES = 64 * 2**20
# Records tried for one place. Where 9 of 10 are broken, one place in 37,000 finds none.
_TRIES = 100


class Placed(NamedTuple):
    """Which record stands at which position of the stream."""

    position: int
    record: int


class Pair(NamedTuple):
    """`kind` is the text's place among the source's kinds in alphabetical order."""

    key: str
    image: UInt8[np.ndarray, "S S 3"]
    text: Int32[np.ndarray, " L"]
    concept: int
    kind: int


class Slot(NamedTuple):
    """What came of one place: a pair, and what was left out before it was found.

    `pair` is None where nothing could be found.
    """

    pair: Pair | None
    skipped: tuple[Skipped, ...] = ()


class MakePair:
    """Maps a place and its random generator to a pair.

    Where a record gives none, others of the same dataset are drawn until one does; see `stream`.
    """

    def __init__(
        self,
        source: Source,
        config: LoaderConfig,
        tokenizer: Tokenizer,
        *,
        global_batch_size: int,
    ):
        self._source = source
        self._config = config
        self._tokenizer = tokenizer
        self._global_batch_size = global_batch_size
        self._kind_index = {kind: i for i, kind in enumerate(sorted(source.text_kinds))}
        self._parts = source.parts if isinstance(source, MixtureSource) else (range(len(source)),)
        self._cache: dict[int, Record] = {}
        self._cached_bytes = 0

    def __call__(self, place: Placed, rng: np.random.Generator) -> Slot:
        skipped: list[Skipped] = []
        step = place.position // self._global_batch_size
        probabilities = self._config.text_probabilities_at(step)
        index = place.record
        part = next(part for part in self._parts if index in part)
        for _ in range(_TRIES):
            found = self._make(index, probabilities, rng)
            if isinstance(found, Pair):
                return Slot(found, tuple(skipped))
            skipped.append(found)
            index = part.start + int(rng.integers(len(part)))
        return Slot(None, tuple(skipped))

    def _make(
        self, index: int, probabilities: Mapping[str, float], rng: np.random.Generator
    ) -> Pair | Skipped:
        record = self._read(index)
        if isinstance(record, Skipped):
            return record
        config, key = self._config, record["key"]
        # Sorted: a record read from a file may hold its kinds in another order.
        shares = probabilities or dict.fromkeys(sorted(record["texts"]), 1.0)
        kind, text = _draw_text(record["texts"], shares, rng)
        if kind in config.list_kinds:
            text = _draw_items(text, rng)
        ids = self._tokenizer([text])[0]
        # A text may be empty only after cleaning ("&nbsp;").
        if ids[1] == END_TOKEN:
            kinds = ", ".join(shares) or "any kind"
            return Skipped(key, NO_TEXT, f"it has no text of {kinds}")
        try:
            image = decode_train_crop(
                record["image"],
                config.image_size,
                rng,
                area=config.crop_area,
                ratio=config.crop_ratio,
            )
        except ImageError as error:
            return Skipped(key, BROKEN_IMAGE, str(error))
        if rng.random() < config.flip_probability:
            image = cv2.flip(image, 1)
        image = jitter_colour(image, config.colour, rng)
        return Pair(key, image, ids, record["labels"].get("concept", -1), self._kind_index[kind])

    def _read(self, index: int) -> Record | Skipped:
        """Keeps a small dataset in memory: parsing a TFDS example costs more than decoding it."""
        if index in self._cache:
            return self._cache[index]
        record = read_record(self._source, index)
        if not isinstance(record, Skipped) and self._cached_bytes < _CACHE_BYTES:
            self._cached_bytes += len(record["image"]) + 1000  # texts and objects, about
            self._cache[index] = record
        return record


def _draw_text(
    texts: Mapping[str, tuple[str, ...]], shares: Mapping[str, float], rng: np.random.Generator
) -> tuple[str, str]:
    """First a kind by its share among those that have a text, then one of its texts.

    Returns:
        The kind and the text, both "" if there is none.
    """
    kinds, weights, choices = [], [], []
    for kind, weight in shares.items():
        present = [text for text in texts.get(kind, ()) if text and not text.isspace()]
        if present and weight > 0:
            kinds.append(kind)
            weights.append(weight)
            choices.append(present)
    if not kinds:
        return "", ""
    edges = np.cumsum(weights)
    drawn = int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))
    drawn = min(drawn, len(choices) - 1)
    chosen = choices[drawn]
    return kinds[drawn], chosen[int(rng.integers(len(chosen)))]


def _draw_items(text: str, rng: np.random.Generator) -> str:
    """A list as it stands, or as often half or more of its items: "a, b, c," -> "c, a".

    Of "," alone "". A part is in random order; empty items are left out of whole lists too.
    """
    items = [item for each in text.split(",") if (item := each.strip())]
    if rng.random() < 0.5:
        return ", ".join(items)
    count = int(rng.integers((len(items) + 1) // 2, len(items) + 1))
    return ", ".join(items[i] for i in rng.permutation(len(items))[:count])


def read_record(source: Source, index: int) -> Record | Skipped:
    """The record, or, where its file cannot be read, why not."""
    try:
        return source[index]
    except OSError as error:
        return Skipped(f"{source.name}[{index}]", UNREADABLE, str(error))
