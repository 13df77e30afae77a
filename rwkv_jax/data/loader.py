"""Records to batches: Grain shuffles, mixes, decodes and reads ahead; this file batches.

The stream of pairs of all epochs and all processes is one long sequence (`stream`), of which every
batch takes the next stretch. So the whole state is one number, the global position behind the
newest batch: it is the same in every process, and nothing depends on the number of processes or
workers. A run may be resumed with another number of either; it goes on with the same batches.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

import grain
import numpy as np
from jaxtyping import Int32, UInt8

from rwkv_jax.data.chunks import Chunk, read_chunks
from rwkv_jax.data.config import LoaderConfig
from rwkv_jax.data.decode import ImageError, decode_image, prepare_opencv
from rwkv_jax.data.pairs import BROKEN_IMAGE, Slot, read_record
from rwkv_jax.data.preprocess import resize_center_crop
from rwkv_jax.data.records import Source
from rwkv_jax.data.skipped import Skipped, SkippedRecords, TooManySkippedError
from rwkv_jax.data.stream import Share, from_position, make_stream
from rwkv_jax.data.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_STATE_VERSION = 2
_EVALUATION_THREADS = 4


class Batch(TypedDict):
    """What a training step reads.

    `concept` is -1 where unknown; equal ones show the same thing. `kind` indexes the loader's
    `text_kinds`: which kind of text was drawn.
    """

    image: UInt8[np.ndarray, "B S S 3"]
    text: Int32[np.ndarray, "B L"]
    concept: Int32[np.ndarray, " B"]
    kind: Int32[np.ndarray, " B"]
    keys: list[str]


class EvaluationBatch(TypedDict):
    """`index` is the record's place in the source."""

    image: UInt8[np.ndarray, "b S S 3"]
    index: Int32[np.ndarray, " b"]


class TrainLoader(Iterator[Batch]):
    """Endless training batches; see `make_train_loader`. Close it to stop its workers."""

    def __init__(
        self,
        stream: grain.MapDataset[Slot],
        config: LoaderConfig,
        *,
        share: Share,
        source: Source,
        seed: int,
    ):
        self._stream = stream
        self._config = config
        self._share = share
        self._source_name = source.name
        self._identity = {
            "dataset": source.name,
            "content_hash": source.content_hash,
            "seed": seed,
        }
        self.text_kinds = tuple(sorted(source.text_kinds))
        self._position = 0
        self._seen = 0
        self._skipped = SkippedRecords()
        self._chunks: grain.DatasetIterator | None = None
        self._chunk: Chunk | None = None
        self._row = 0  # of the current chunk; those before it are used
        self._closed = False

    @property
    def skipped(self) -> SkippedRecords:
        """What this process left out so far, up to the end of the newest batch."""
        return self._skipped

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            TooManySkippedError: more than `max_skipped_share` of the records are broken, or of a
                hundred there was not one that is whole.
        """
        if self._closed:
            raise RuntimeError("the loader is closed")
        parts: list[tuple[Chunk, int, int]] = []
        missing = self._share.batch_size
        while missing:
            chunk = self._current_chunk()
            first, last = self._row, min(self._row + missing, len(chunk.skipped))
            self._count(chunk, first, last)
            parts.append((chunk, first, last))
            missing -= last - first
            self._row = last
        self._position += self._share.global_batch_size
        return Batch(
            image=np.concatenate([c.image[i:j] for c, i, j in parts]),
            text=np.concatenate([c.text[i:j] for c, i, j in parts]),
            concept=np.concatenate([c.concept[i:j] for c, i, j in parts]),
            kind=np.concatenate([c.kind[i:j] for c, i, j in parts]),
            keys=[key for c, i, j in parts for key in c.keys[i:j]],
        )

    def get_state(self) -> dict[str, Any]:
        """JSON-able; a loader that is given it goes on with the batch after the newest one.

        Any process's state serves all, whatever their number. `seen` and `skipped` are this
        process's own counts, which only judge how much of the data is broken.
        """
        return {
            "version": _STATE_VERSION,
            **self._identity,
            "position": self._position,
            "seen": self._seen,
            "skipped": self._skipped.to_dict(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on where the loader stood that gave this state, in any number of processes.

        Raises:
            ValueError: the state is of another dataset or seed, with which the batches would not
                be those that would have come.
        """
        expected = {"version": _STATE_VERSION, **self._identity}
        for name, value in expected.items():
            if state.get(name) != value:
                raise ValueError(
                    f"the loader's saved state has {name} = {state.get(name)!r}, this loader has"
                    f" {value!r}: resume with what the run was started with, or start a new run"
                )
        self._stop_reading()
        self._position = int(state["position"])
        self._seen = int(state["seen"])
        self._skipped = SkippedRecords.from_dict(state["skipped"])

    def close(self) -> None:
        """Stops workers and threads. Safe to call twice."""
        self._stop_reading()
        self._closed = True

    def __enter__(self) -> "TrainLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _current_chunk(self) -> Chunk:
        """A chunk that has something unused."""
        chunk = self._chunk
        if chunk is None or self._row == len(chunk.skipped):
            if self._chunks is None:
                stream = from_position(self._stream, self._position, self._share)
                self._chunks = read_chunks(stream, self._config, self._share.batch_size)
            chunk = self._chunk = next(self._chunks)
            self._row = 0
        return chunk

    def _count(self, chunk: Chunk, first: int, last: int) -> None:
        """Counts what was left out for the chunk's places from `first` to before `last`."""
        for row in range(first, last):
            for skipped in chunk.skipped[row]:
                self._skipped.add(skipped)
            self._seen += len(chunk.skipped[row]) + (row < len(chunk.keys))
            if row == len(chunk.keys):
                raise TooManySkippedError(
                    f"the last {len(chunk.skipped[row])} records read from {self._source_name} were"
                    f" all skipped, and {self._skipped.total} of {self._seen}: {self._skipped};"
                    " mend the data"
                )
        self._skipped.check(self._seen, self._config.max_skipped_share, self._source_name)

    def _stop_reading(self) -> None:
        if self._chunks is not None:
            self._chunks.close()
        self._chunks = self._chunk = None


def make_train_loader(
    source: Source,
    config: LoaderConfig,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainLoader:
    """Endless shuffled batches of `batch_size` pairs for this process.

    Args:
        source: the records; picklable, for the workers.
        config: sizes, augmentation, workers.
        tokenizer: of the same context length as `config`.
        batch_size: pairs a batch of this process; the global batch is `process_count` times that,
            the processes' batches one behind the other.
        seed: with it, global batches are the same whatever the number of workers and processes.
        process_index: which of the processes this is.
        process_count: how many share the records.

    Raises:
        ValueError: the source is smaller than a global batch, has none of the kinds of text that
            the configuration names, or the tokenizer's context is another.
    """
    if tokenizer.context_length != config.context_length:
        raise ValueError(
            f"the tokenizer's context_length is {tokenizer.context_length}, the loader's"
            f" {config.context_length}; make the tokenizer with the configuration's"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index = {process_index} of process_count = {process_count}")
    if batch_size < 1 or batch_size * process_count > len(source):
        raise ValueError(
            f"batch_size = {batch_size} in each of {process_count} processes, but {source.name} has"
            f" {len(source)} records; take between 1 and {len(source) // process_count}"
        )
    drawn_from = "text_schedule" if config.text_schedule else "text_probabilities"
    for field, kinds in ((drawn_from, config.named_kinds()), ("list_kinds", config.list_kinds)):
        unknown = sorted(set(kinds) - set(source.text_kinds))
        if unknown or not source.text_kinds:
            raise ValueError(
                f"{field} names {unknown}, but {source.name} has the kinds of text"
                f" {sorted(source.text_kinds)}"
            )
    share = Share(batch_size, process_index, process_count)
    stream = make_stream(
        source, config, tokenizer, global_batch_size=share.global_batch_size, seed=seed
    )
    return TrainLoader(stream, config, share=share, source=source, seed=seed)


def evaluation_batches(
    source: Source, *, image_size: int, batch_size: int
) -> Iterator[EvaluationBatch]:
    """The source's pictures in order, once, each resized and cropped in the middle.

    The last batch may be smaller. Pictures that cannot be read are left out, logged with their key
    and counted; `index` says which are there.

    Raises:
        TooManySkippedError: not one picture could be read.
    """
    prepare_opencv()
    skipped = SkippedRecords()
    pictures = grain.MapDataset.range(len(source)).map(_EvaluationPicture(source, image_size))
    options = grain.ReadOptions(_EVALUATION_THREADS, max(_EVALUATION_THREADS, batch_size))
    images: list[np.ndarray] = []
    indices: list[int] = []
    reading = iter(pictures.to_iter_dataset(options))
    try:
        for index, picture in enumerate(reading):
            if isinstance(picture, Skipped):
                skipped.add(picture)
                continue
            images.append(picture)
            indices.append(index)
            if len(images) == batch_size:
                yield EvaluationBatch(image=np.stack(images), index=np.array(indices, np.int32))
                images, indices = [], []
    finally:
        reading.close()
    if images:
        yield EvaluationBatch(image=np.stack(images), index=np.array(indices, np.int32))
    if skipped.total:
        left_out = f"{skipped.total} of the {len(source)} records of {source.name}: {skipped}"
        if skipped.total == len(source):
            raise TooManySkippedError(f"no picture can be read; left out {left_out}")
        logger.warning("left out %s", left_out)


class _EvaluationPicture:
    def __init__(self, source: Source, image_size: int):
        self._source = source
        self._image_size = image_size

    def __call__(self, index: int) -> np.ndarray | Skipped:
        record = read_record(self._source, int(index))
        if isinstance(record, Skipped):
            return record
        try:
            return resize_center_crop(decode_image(record["image"]), self._image_size)
        except ImageError as error:
            return Skipped(record["key"], BROKEN_IMAGE, str(error))
