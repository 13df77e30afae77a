"""Kernels for `rwkv_kernels.ddlerp`: several interpolations of a token and its neighbour.

Arrays of tokens are [M, D], all of a batch's tokens one after the other. A block works on 64 tokens
and 64 channels at a time: the products are of low rank, so everything waits for memory, and what
matters is that each array crosses it once.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, BFloat16, Float, Float32

from rwkv_kernels.gpu import tokens
from rwkv_kernels.gpu.call import Block, kernel_call
from rwkv_kernels.gpu.grid import Grid
from rwkv_kernels.gpu.plan import TILE, Plan
from rwkv_kernels.gpu.tiling import Tiling
from rwkv_kernels.gpu.warpgroup import BFLOAT16, Operand, Warpgroup

CHANNELS = TILE  # of a transposed product's rows, too
_ONES = 16  # columns beside a use's z whose products are sums; as many as memory's blocks have
_BLOCKS = 264  # two on each of an H200's multiprocessors


@dataclasses.dataclass(frozen=True)
class Uses:
    """How many interpolations there are, and their rank."""

    count: int
    rank: int

    def of_z(self, wg: Warpgroup, z: tokens.Parts, use: int) -> BFloat16[Array, "64 R"]:
        return tokens.columns(wg, z, self.rank * use, self.rank)

    def of_up(self, up: Operand, use: int) -> Operand:
        return Operand(up.ref.at[pl.ds(self.rank * use, self.rank), :])


def _warpgroup(M: int, interpret) -> Warpgroup:
    return Warpgroup(Plan(M, CHANNELS, causal=False, tiling=Tiling()), CHANNELS, 1, interpret)


def forward(
    uses: Uses,
    x: BFloat16[Array, "M D"],
    xx: BFloat16[Array, "M D"],
    z: BFloat16[Array, "M AR"],
    maa: Float32[Array, "A D"],
    up: BFloat16[Array, "AR D"],
    *,
    interpret=None,
) -> tuple[BFloat16[Array, "M D"], ...]:
    """x + xx (maa_a + z_a up_a) for each use a."""
    M, D = x.shape
    wg = _warpgroup(M, interpret)
    of_tokens = wg.tokens(CHANNELS, x.dtype)
    of_z = wg.tokens(uses.count * uses.rank, z.dtype)
    scratch = {
        "x_": of_tokens, "xx_": of_tokens, "z_": of_z, "first": of_tokens, "second": of_tokens,
        "up_": wg.operand(CHANNELS, rows=uses.count * uses.rank), "maa_": _rows(uses),
    }  # fmt: skip
    outputs = {f"y{a}": jax.ShapeDtypeStruct((1, M, D), x.dtype) for a in range(uses.count)}
    results = kernel_call(
        functools.partial(_forward, wg, uses), wg,
        {"x": x[None], "xx": xx[None], "z": z[None], "maa": maa, "up": up}, outputs, scratch,
        grid=Grid(1, wg.plan.tiles, D // CHANNELS), copies=2 * len(of_tokens) + len(of_z) + 2,
        name="ddlerp_forward",
    )  # fmt: skip
    return tuple(y[0] for y in results.values())


def _forward(
    wg: Warpgroup, uses: Uses, block: Block, *, x, xx, z, maa, up, x_, xx_, z_, first, second, up_,
    maa_, **outputs: Any,
) -> None:  # fmt: skip
    x_, xx_, z_, first, second, up_, maa_ = block.own((x_, xx_, z_, first, second, up_, maa_))
    block, i = block.by_rows()
    channels = pl.ds(block.channel, CHANNELS)
    places = ((x, x_), (xx, xx_))
    copies = [copy for array, to in places for copy in block.tokens(array, i, to)]
    weights = ((up.at[:, channels], up_), (maa.at[:, channels], maa_))
    block.start([*copies, *block.columns(z, i, z_), *weights])
    block.wait()
    given, towards = (tokens.load(wg, part) for part in (x_, xx_))
    block.wait_for_all()
    rooms = (first, second, x_, xx_)
    for a, y in enumerate(outputs.values()):
        share = _share(wg, uses, z_, Operand(up_), maa_, a)
        if a >= len(rooms):
            block.wait_for_writes()  # of what is in the room
        room = rooms[a % len(rooms)]
        tokens.write(wg, room, wg.float32(given) + wg.float32(towards) * share)
        block.write(i, (room, y))
    block.wait_for_writes()


def by_tokens(
    uses: Uses,
    xx: BFloat16[Array, "M D"],
    z: BFloat16[Array, "M AR"],
    maa: Float32[Array, "A D"],
    up: BFloat16[Array, "AR D"],
    gradients: Sequence[BFloat16[Array, "M D"]],
    *,
    interpret=None,
) -> tuple[BFloat16[Array, "M D"], BFloat16[Array, "M D"], BFloat16[Array, "M AR"]]:
    """Gradients of x, xx and z: a block goes over all channels of its tokens."""
    wg = _warpgroup(xx.shape[0], interpret)
    of_tokens, of_z = wg.tokens(CHANNELS, xx.dtype), wg.tokens(z.shape[1], z.dtype)
    scratch = {
        "came": (of_tokens,) * (1 + uses.count), "z_": of_z, "found": (of_tokens,) * 2,
        "up_": wg.operand(CHANNELS, rows=z.shape[1]), "maa_": _rows(uses),
    }  # fmt: skip
    like = {"dx": xx, "dxx": xx, "dz": z}
    inputs = {"xx": xx[None], "z": z[None], "maa": maa, "up": up}
    results = kernel_call(
        functools.partial(_by_tokens, wg, uses), wg,
        inputs | {f"g{a}": g[None] for a, g in enumerate(gradients)},
        {name: jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for name, x in like.items()}, scratch,
        grid=Grid(1, 1, wg.plan.tiles), copies=(1 + uses.count) * len(of_tokens) + 2,
        name="ddlerp_by_tokens",
    )  # fmt: skip
    return results["dx"][0], results["dxx"][0], results["dz"][0]


def _by_tokens(
    wg: Warpgroup, uses: Uses, block: Block, *, xx, z, maa, up, dx, dxx, dz, came, z_, found, up_,
    maa_, **gradients: Any,
) -> None:  # fmt: skip
    i, chunks = block.part, maa.shape[1] // CHANNELS

    def start(chunk: Array, *which: int) -> None:
        """Begins to copy some of xx (0) and the gradients; with xx what all uses need."""
        here = block.at_head(chunk)
        rooms, up_here, maa_here = block.own((came, up_, maa_), anew=chunk)
        sources = (xx, *gradients.values())
        copies = [copy for j in which for copy in here.tokens(sources[j], i, rooms[j])]
        if 0 in which:
            channels = pl.ds(here.channel, CHANNELS)
            copies += [(up.at[:, channels], up_here), (maa.at[:, channels], maa_here)]
        block.start(copies)

    for which, copy in enumerate(block.columns(z, i, block.own(z_))):
        block.start_state([copy], which)
    start(jnp.int32(0), *range(1 + uses.count))
    for which in range(len(z_)):
        block.wait_for_state(which)

    def add(chunk: Array, of_z: list[Array]) -> list[Array]:
        here = block.at_head(chunk)

        def start_next(*which: int) -> None:
            """Of the channels after these, into rooms that all have read."""
            pl.when(chunk + 1 < chunks)(lambda: start(chunk + 1, *which))

        block.wait()
        of_x, of_towards = wg.zeros(CHANNELS), wg.zeros(CHANNELS)
        new = []
        for a, total in enumerate(of_z):
            anew = uses.count * chunk + a  # registers are short: nothing is loaded before its time
            rooms, z_here, up_here, maa_here = block.own((came, z_, up_, maa_), anew=anew)
            share = _share(wg, uses, z_here, Operand(up_here), maa_here, a)
            g = tokens.load(wg, rooms[1 + a])
            of_share = g * tokens.load(wg, rooms[0])
            g = wg.float32(g)
            of_towards = of_towards + g * share
            of_x = of_x + g
            new.append(wg.add_product(total, of_share, uses.of_up(Operand(up_here), a).T))
            start_next(1 + a, *((0,) if a + 1 == uses.count else ()))
        block.wait_for_writes()  # of the channels before
        room, other = block.own(found, anew=chunk)
        tokens.write(wg, room, of_x)
        tokens.write(wg, other, of_towards)
        here.write(i, (room, dx), (other, dxx))
        return new

    zeros = [wg.zeros(uses.rank) for _ in range(uses.count)]
    of_z = lax.fori_loop(0, chunks, add, zeros)
    wg.wait_for_readers()
    z_ = block.own(z_)
    for a, x in enumerate(of_z):
        tokens.write(wg, z_, x, uses.rank * a)
    block.write_columns(i, (z_, dz))
    block.wait_for_writes()


def by_channels(
    uses: Uses,
    xx: BFloat16[Array, "M D"],
    z: BFloat16[Array, "M AR"],
    gradients: Sequence[BFloat16[Array, "M D"]],
    *,
    interpret=None,
) -> tuple[Float32[Array, "A D"], Float32[Array, "AR D"]]:
    """Gradients of maa and up: a block goes over a part of the tokens, of its channels."""
    M, D = xx.shape
    wg = _warpgroup(M, interpret)
    chunks, tiles = D // CHANNELS, wg.plan.tiles
    segments = min(tiles, max(1, _BLOCKS // chunks))
    wide = uses.rank + _ONES
    narrow = dataclasses.replace(wg, width=3 * _ONES)  # its operands' blocks are as narrow
    of_tokens, of_z = wg.tokens(CHANNELS, xx.dtype), wg.tokens(z.shape[1], z.dtype)
    of_sums = wg.tokens(wide, jnp.float32)
    scratch = {
        "came_or_sums": wg.in_turn(((of_tokens,) * (1 + uses.count), of_z), of_sums),
        "beside_ones": narrow.operand(uses.count * wide), "room": narrow.operand(CHANNELS),
    }  # fmt: skip
    sums = kernel_call(
        functools.partial(_by_channels, wg, narrow, uses), wg,
        {"xx": xx[None], "z": z[None]} | {f"g{a}": g[None] for a, g in enumerate(gradients)},
        {"sums": jax.ShapeDtypeStruct((segments, D, uses.count * wide), jnp.float32)}, scratch,
        grid=Grid(1, chunks, segments), copies=(1 + uses.count) * len(of_tokens) + len(of_z),
        name="ddlerp_by_channels",
    )["sums"]  # fmt: skip
    # By itself: in one kernel with the transposes that follow, XLA would read it across rows.
    sums = lax.optimization_barrier(jnp.sum(sums, axis=0))
    sums = sums.reshape(D, uses.count, wide)  # [D, A W] -> [D, A, W]
    of_up = sums[..., : uses.rank].reshape(D, -1).T  # [D, A, R] -> [A R, D]
    return sums[..., uses.rank].T, of_up


def _by_channels(
    wg: Warpgroup, narrow: Warpgroup, uses: Uses, block: Block, *, xx, z, sums, came_or_sums,
    beside_ones, room, **gradients: Any,
) -> None:  # fmt: skip
    segments, wide = sums.shape[0], uses.rank + _ONES
    sources = (xx, *gradients.values())
    (of_came, of_z), of_sums = came_or_sums
    came, z_, sums_ = (block.own(x) for x in (of_came, of_z, of_sums))
    beside_ones, room = (Operand(block.own(x)) for x in (beside_ones, room))
    first, end = (lax.div((block.part + i) * wg.plan.tiles, segments) for i in (0, 1))

    def start(i: Array, *which: int) -> None:
        """Begins to copy some of xx (0) and the gradients; with xx z."""
        copies = [copy for j in which for copy in block.tokens(sources[j], i, came[j])]
        block.start([*copies, *(block.columns(z, i, z_) if 0 in which else ())])

    def add(i: Array, totals: list[Array]) -> list[Array]:
        block.wait()
        towards_, *of_uses = came
        towards = tokens.load(wg, towards_)
        for a in range(uses.count):
            narrow.write(beside_ones.columns(wide * a, uses.rank), uses.of_z(wg, z_, a))
        new = []
        for a, (of_use, total) in enumerate(zip(of_uses, totals, strict=True)):
            of_share = tokens.load(wg, of_use) * towards
            wg.wait_for_readers()
            narrow.store((room, of_share))
            # All have read what this overwrites.
            read = (1, 0) if a == 0 else (1 + a,)
            pl.when(i + 1 < end)(functools.partial(start, i + 1, *read))
            new.append(wg.add_product(total, room.T, beside_ones.columns(wide * a, wide)))
        return new

    start(first, *range(1 + uses.count))
    ones = wg.constant(1, _ONES, BFLOAT16)
    for a in range(uses.count):
        narrow.write(beside_ones.columns(wide * a + uses.rank, _ONES), ones)
    totals = lax.fori_loop(first, end, add, [wg.zeros(wide) for _ in range(uses.count)])
    block.wait_for_all()
    target = sums.at[block.part, pl.ds(block.channel, CHANNELS)]
    for a, total in enumerate(totals):
        block.wait_for_writes()
        tokens.write(wg, sums_, total)
        block.write_to(target, sums_, wide * a)
    block.wait_for_writes()


def _rows(uses: Uses) -> Any:
    """Shared memory for maa, of a block's channels."""
    return plgpu.SMEM((1, uses.count, CHANNELS), jnp.float32)


def _share(
    wg: Warpgroup, uses: Uses, z: tokens.Parts, up: Operand, maa, use: int
) -> Float[Array, "64 n"]:
    """How much of its neighbour a token looks at, in a use of it."""
    return wg.add_product(wg.load_row(maa.at[use]), uses.of_z(wg, z, use), uses.of_up(up, use))
