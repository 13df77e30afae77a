"""The endless sequence of training pairs, and which of them a process makes.

Position n of the sequence is the n-th pair of the run, over all processes. A global batch of G
pairs is G consecutive positions, of which process p of P makes the p-th P-th, in order: laid side
by side, the processes' batches are the same global batch, row by row, whatever P is. Which record
stands at a position, its crop and its text follow from (seed, position) alone.

Unusual: a record that gives no pair does not move the ones behind it. Its place is taken by another
record of the same dataset, drawn from the place's own random numbers. So no process has to know
what was broken elsewhere, a position is all the state there is, and a run may go on with another
number of processes with no pair lost or repeated. (An epoch with k broken records shows k good ones
a second time.)
"""

from typing import NamedTuple

import grain
import numpy as np

from rwkv_jax.data.config import LoaderConfig
from rwkv_jax.data.mixture import MixtureSource
from rwkv_jax.data.pairs import MakePair, Placed, Slot
from rwkv_jax.data.records import Source
from rwkv_jax.data.tokenizer import Tokenizer


class Share(NamedTuple):
    """The part of every global batch that is one process's.

    Attributes:
        batch_size: pairs of this process in a batch.
        process: which process this is.
        processes: how many there are.
    """

    batch_size: int
    process: int = 0
    processes: int = 1

    @property
    def global_batch_size(self) -> int:
        return self.batch_size * self.processes

    def position(self, start: int, index: int) -> int:
        """The global position of this process's `index`-th pair, counted from position `start`."""
        batch, row = divmod(index, self.batch_size)
        return start + batch * self.global_batch_size + self.process * self.batch_size + row


def make_stream(
    source: Source,
    config: LoaderConfig,
    tokenizer: Tokenizer,
    *,
    global_batch_size: int,
    seed: int,
) -> grain.MapDataset[Slot]:
    """The sequence of all processes, by global position. A mixture's parts each have their epochs.

    Args:
        global_batch_size: pairs of all processes a step, for probabilities that follow the step.
    """
    # Hashed apart, as Grain shuffles epoch e with seed + e: seeds 0 and 1 would share epochs.
    shuffle_seed, draw_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
    if isinstance(source, MixtureSource):
        seeds = np.random.SeedSequence([shuffle_seed, 1]).generate_state(len(source.parts))
        orders = [
            grain.MapDataset.range(part.start, part.stop).shuffle(seed=int(part_seed)).repeat()
            for part, part_seed in zip(source.parts, seeds, strict=True)
        ]
        order = grain.MapDataset.mix(orders, source.weights)
    else:
        order = grain.MapDataset.range(len(source)).shuffle(seed=shuffle_seed).repeat()
    make_pair = MakePair(source, config, tokenizer, global_batch_size=global_batch_size)
    return order.map_with_index(_place).random_map(make_pair, seed=draw_seed)


def from_position(
    stream: grain.MapDataset[Slot], start: int, share: Share
) -> grain.MapDataset[Slot]:
    """One process's pairs of the global batches from position `start` on."""
    batches = (len(stream) - start) // share.global_batch_size
    pairs = grain.MapDataset.range(batches * share.batch_size)
    return pairs.map(_Pick(stream, start, share))


def _place(position: int, index: int) -> Placed:
    return Placed(int(position), int(index))


class _Pick:
    def __init__(self, stream: grain.MapDataset[Slot], start: int, share: Share):
        self._stream = stream
        self._start = start
        self._share = share

    def __call__(self, index: int) -> Slot:
        return self._stream[self._share.position(self._start, int(index))]
