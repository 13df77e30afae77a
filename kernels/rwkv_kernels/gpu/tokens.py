"""Tiles of tokens in shared memory as they come from main memory and go to it: in rows, unswizzled,
in parts of some channels each (`plan.parts`).
"""

from collections.abc import Iterator, Sequence
from typing import Any

from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from rwkv_kernels.gpu import warp
from rwkv_kernels.gpu.warpgroup import Warpgroup

Parts = Sequence[Any]  # refs [64, channels of the part], side by side


def load(wg: Warpgroup, tile: Parts) -> Float[Array, "64 n"]:
    """A tile in the dtype it has."""
    pieces = [wg.load_raw(part) for part in tile]
    return pieces[0] if len(pieces) == 1 else warp.joined(wg, pieces)


def columns(wg: Warpgroup, tile: Parts, first: int, count: int) -> Float[Array, "64 count"]:
    """Some of a tile's channels, in sixteens."""
    return warp.joined(
        wg, list(sixteens(wg, tile))[first // warp.SIXTEEN :][: count // warp.SIXTEEN]
    )


def between(wg: Warpgroup, tile: Parts, first: int, count: int) -> Float[Array, "64 count"]:
    """Channels `first` to `first + count`, in eights, which may lie in two parts."""
    pieces, start = [], 0
    for part in tile:
        width = part.shape[-1]
        begin, end = max(first - start, 0), min(first + count - start, width)
        if begin < end:
            here = part if end - begin == width else part.at[:, pl.ds(begin, end - begin)]
            pieces.append(wg.load_raw(here))
        start += width
    return pieces[0] if len(pieces) == 1 else warp.joined(wg, pieces)


def sixteens(wg: Warpgroup, tile: Parts) -> Iterator[Float[Array, "64 16"]]:
    """A tile's channels, sixteen at a time."""
    for part in tile:
        for first in range(0, part.shape[-1], warp.SIXTEEN):
            yield wg.load_raw(part.at[:, pl.ds(first, warp.SIXTEEN)])


def write(wg: Warpgroup, tile: Parts, x: Float[Array, "64 n"], first: int = 0) -> None:
    """Writes to a tile's channels from `first` on, rounded to its dtype. Waits for nobody."""
    start = 0
    for part in tile:
        width = part.shape[-1]
        begin, end = max(first, start), min(first + x.shape[1], start + width)
        if begin < end:
            here = part if end - begin == width else part.at[:, pl.ds(begin - start, end - begin)]
            here[...] = warp.columns(wg, x, begin - first, end - begin).astype(part.dtype)
        start += width
