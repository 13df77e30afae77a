"""Pairs of consecutive positions, made in worker processes or in a thread, and handed over stacked.

One by one, pairs would cost more to hand over than to make.
"""

import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import parent_process

import grain
import numpy as np
from absl import flags
from jaxtyping import Int32, UInt8

from rwkv_jax.data.config import LoaderConfig
from rwkv_jax.data.decode import prepare_opencv
from rwkv_jax.data.pairs import Slot
from rwkv_jax.data.skipped import Skipped

_MAX_CHUNK = 64


@dataclass(frozen=True)
class Chunk:
    """The pairs of one process's consecutive positions, stacked, and what was left out for them.

    No pytree, on purpose: Grain sends the arrays of a pytree through shared memory, which a killed
    run would leave behind and of which a container has little.
    """

    image: UInt8[np.ndarray, "k S S 3"]
    text: Int32[np.ndarray, "k L"]
    concept: Int32[np.ndarray, " k"]
    kind: Int32[np.ndarray, " k"]
    keys: list[str]
    # Of each position. The rows end before the first position for which there was no pair at all.
    skipped: list[tuple[Skipped, ...]]


@dataclass(frozen=True)
class _StackChunk:
    image_size: int
    context_length: int

    def __call__(self, slots: Sequence[Slot]) -> Chunk:
        pairs = []
        for slot in slots:
            if slot.pair is None:
                break
            pairs.append(slot.pair)
        image = np.empty((len(pairs), self.image_size, self.image_size, 3), np.uint8)
        text = np.empty((len(pairs), self.context_length), np.int32)
        for row, pair in enumerate(pairs):
            image[row], text[row] = pair.image, pair.text
        return Chunk(
            image=image,
            text=text,
            concept=np.array([pair.concept for pair in pairs], np.int32),
            kind=np.array([pair.kind for pair in pairs], np.int32),
            keys=[pair.key for pair in pairs],
            skipped=[slot.skipped for slot in slots],
        )


def read_chunks(
    stream: grain.MapDataset[Slot], config: LoaderConfig, batch_size: int
) -> grain.DatasetIterator:
    """Starts reading; yields the stream's chunks in order, the same for any number of workers."""
    chunk_size = min(batch_size, _MAX_CHUNK)
    ahead = -(-config.prefetch * batch_size // chunk_size)
    stack = _StackChunk(config.image_size, config.context_length)
    # drop_remainder only keeps the length of the endless stream within an integer.
    chunks = stream.batch(chunk_size, drop_remainder=True, batch_fn=stack)
    if config.workers == 0:
        prepare_opencv()
        return iter(chunks.to_iter_dataset(grain.ReadOptions(1, ahead)))
    if not flags.FLAGS.is_parsed():
        # Grain reads a flag of its own, which is an error unless absl.app runs the program.
        flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(
        num_workers=config.workers, per_worker_buffer_size=-(-ahead // config.workers)
    )
    reading = chunks.to_iter_dataset(grain.ReadOptions(0, 0))
    return iter(reading.mp_prefetch(options, worker_init_fn=_start_worker))


def _start_worker(index: int, count: int) -> None:
    del index, count
    prepare_opencv()
    # Ctrl-C reaches the whole terminal; the training process decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A training process that is killed cannot stop its workers, and they would wait for ever.
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
