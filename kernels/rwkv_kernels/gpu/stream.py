"""For kernels that wait for memory: a block goes over many tiles of tokens, and copies the next one
while it works on one; blocks beside it, over those tokens' other channels.
"""

from collections.abc import Callable
from typing import Any

from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array

from rwkv_kernels.gpu.call import Block
from rwkv_kernels.gpu.grid import Grid

_MULTIPROCESSORS = 132  # of an H100 or H200


def grid(tiles: int, heads: int, blocks: int) -> Grid:
    """Its heads are segments of the tiles, and its parts the heads, or chunks of channels
    (`Block.by_rows`). blocks: so many on a multiprocessor at most.
    """
    return Grid(1, min(tiles, max(1, blocks * _MULTIPROCESSORS // heads)), heads)


def over_tokens(
    block: Block,
    copies: Callable[[Block, Array], list],
    load: Callable[[], Any],
    work: Callable[[Block, Array, Any, Any], Any],
    carry: Any,
) -> Any:
    """The carry after work(block, tile, what `load` has given, carry) for each tile of a segment.

    copies: what comes in for a tile, of the block's channels; load: what has come, into registers.
    """
    here, segment = block.by_rows()
    first, end = (lax.div((segment + i) * here.plan.tiles, here.heads) for i in (0, 1))

    def step(i: Array, carry: Any) -> Any:
        here.wait()
        given = load()
        pl.when(i + 1 < end)(lambda: here.start(copies(here, i + 1)))
        return work(here, i, given, carry)

    here.start(copies(here, first))
    return lax.fori_loop(first, end, step, carry)
