"""Tiles of tokens in shared memory as they come from main memory and go to it: in rows, unswizzled,
in parts of some channels each (`plan.parts`).
"""

from collections.abc import Sequence
from typing import Any

from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from rwkv_kernels.gpu import warp
from rwkv_kernels.gpu.warpgroup import Warpgroup

Parts = Sequence[Any]  # refs [64, channels of the part], side by side


def load(
    wg: Warpgroup, tile: Parts, first: int = 0, count: int | None = None
) -> Float[Array, "64 count"]:
    """Some of a tile's channels, or all, in the dtype they have."""
    count = wg.width if count is None else count
    pieces = [wg.load_raw(piece) for piece, _ in _pieces(tile, first, count)]
    return pieces[0] if len(pieces) == 1 else warp.joined(wg, pieces)


def write(wg: Warpgroup, tile: Parts, x: Float[Array, "64 n"], first: int = 0) -> None:
    """Writes to a tile's channels from `first` on, rounded to its dtype. Waits for nobody."""
    for piece, (at, count) in _pieces(tile, first, x.shape[1]):
        piece[...] = warp.columns(wg, x, at, count).astype(piece.dtype)


def _pieces(tile: Parts, first: int, count: int) -> list[tuple[Any, tuple[int, int]]]:
    """What of each part is among the channels, and which of them it is."""
    pieces, start = [], 0
    for ref in tile:
        width = ref.shape[-1]
        begin, end = max(first, start), min(first + count, start + width)
        if begin < end:
            here = ref if end - begin == width else ref.at[:, pl.ds(begin - start, end - begin)]
            pieces.append((here, (begin - first, end - begin)))
        start += width
    return pieces
