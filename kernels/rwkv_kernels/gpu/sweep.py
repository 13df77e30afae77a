"""The kernel that goes over a sequence for the states at the borders of its tiles.

A state is held as value x key, so that a decay scales its columns, which are a tile's columns: its
channels of the key never meet, and blocks share them. It goes on in float32; tiles read it in
bfloat16, as their products do.

A long sequence of few heads is cut into segments that are swept side by side, twice: once from
nothing, for the sum that each adds and the decay that it lets through, and once more from what the
segments before it have left.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, BFloat16, Float, Float32

from rwkv_kernels.gpu import masks, tile
from rwkv_kernels.gpu.call import Block, kernel_call
from rwkv_kernels.gpu.plan import TILE, Plan
from rwkv_kernels.gpu.warpgroup import BFLOAT16, Operand, Warpgroup


def states(
    plan: Plan,
    values: Float[Array, "B T C"],
    keys: Float[Array, "B T C"],
    w: Float[Array, "B T C"],
    initial: Float32[Array, "B H N N"] | None,
    *,
    leftwards: bool,
    interpret=None,
) -> tuple[BFloat16[Array, "B H borders N N"], Float32[Array, "B H N N"]]:
    """The sum of values^T keys, decayed on the way, of the tokens to one side of each border.

    Rightwards of those to its left, leftwards of those to its right. With r for the keys and the
    gradient of y for the values, the gradients of the states that go the other way.

    initial: the state at the border where the sweep begins, value x key; None is zeros.

    Returns:
      The states at the borders (the first is to the left of all tiles), and that at which the sweep
      ends once more, in float32.
    """
    sweep = functools.partial(_sweep, plan, values, keys, w, leftwards, interpret)
    segments = plan.tiling.sweep_segments
    if segments == 1:
        start = None if initial is None else initial[:, :, None]
        results = sweep(start, borders=True)
        return results["borders"], results["ends"][:, :, 0]

    alone = sweep(None, borders=False)
    B, _, C = keys.shape
    N = plan.head_size
    # [B, segments, H * N] -> [B, segments, H, 1, N]: a decay of each of a state's columns.
    through = jnp.exp(alone["log_decays"]).reshape(B, segments, C // N, 1, N)
    state = jnp.zeros((B, C // N, N, N), jnp.float32) if initial is None else initial
    starts = []
    for i in reversed(range(segments)) if leftwards else range(segments):
        starts.append(state)
        state = state * through[:, i] + alone["ends"][:, :, i]
    results = sweep(jnp.stack(starts[::-1] if leftwards else starts, axis=2), borders=True)
    return results["borders"], state


def _sweep(
    plan: Plan, values, keys, w, leftwards: bool, interpret, starts, *, borders: bool
) -> dict[str, Array]:
    """Sweeps each segment from its state in `starts`, [B, H, segments, N, N], or from nothing.

    Gives the states in which segments end ("ends", like `starts`), and with `borders` those at all
    borders ("borders"), else the logs of what segments let through, [B, segments, C]
    ("log_decays").
    """
    wg = Warpgroup(plan, plan.widths("states"), interpret)
    (B, _, C), N = keys.shape, plan.head_size
    how = plan.tiling

    def own(width: int):
        stages = how.sweep_stages
        return {
            "values_": plgpu.SMEM((stages, TILE, N), values.dtype),
            "keys_": plgpu.SMEM((stages, TILE, width), keys.dtype),
            "w_": plgpu.SMEM((stages, TILE, width), jnp.float32),
            "log_d": wg.operand(width, parts=2),
            "left": wg.operand(N),
            "right": wg.operand(width),
            "state": plgpu.SMEM((N, width), jnp.float32),
            "rounded": plgpu.SMEM((N, width), BFLOAT16),
        }

    (width,) = wg.widths
    outputs = {"ends": jax.ShapeDtypeStruct((B, C // N, how.sweep_segments, N, N), jnp.float32)}
    if borders:
        outputs["borders"] = jax.ShapeDtypeStruct((B, C // N, plan.tiles + 1, N, N), BFLOAT16)
    else:
        outputs["log_decays"] = jax.ShapeDtypeStruct((B, how.sweep_segments, C), jnp.float32)
    return kernel_call(
        functools.partial(_kernel, wg, leftwards), wg,
        {"values": values, "keys": keys, "w": w, "starts": starts, "borders": None,
         "log_decays": None},
        outputs, own, {}, grid=(B, C // N, how.sweep_segments * how.sweep_blocks),
        first=lambda: lax.rem(lax.axis_index("part"), how.sweep_blocks) * width,
        copies=3 * how.sweep_stages, name="wkv6_states" if borders else "wkv6_segments",
    )  # fmt: skip


def _kernel(
    wg: Warpgroup, leftwards: bool, block: Block, *, values, keys, w, starts,
    ends, borders, log_decays, values_, keys_, w_, log_d, left, right, state, rounded,
) -> None:  # fmt: skip
    log_d, left, right = (Operand(tuple(x)) for x in (log_d, left, right))
    plan, stages = wg.plan, wg.plan.tiling.sweep_stages
    tiles = plan.tiles // plan.tiling.sweep_segments
    segment = lax.div(lax.axis_index("part"), plan.tiling.sweep_blocks)
    blocks = [pl.ds(first, TILE) for first in plan.state_blocks]
    end = (block.batch, block.head, segment, slice(None), block.own)

    def tile_at(step):
        return tiles * segment + (tiles - 1 - step if leftwards else step)

    def keep(new) -> None:
        for rows, x in zip(blocks, new, strict=True):
            state[rows] = x
            rounded[rows] = x.astype(BFLOAT16)

    def write_border(border) -> None:
        if borders is not None:
            block.write_to(block.state(borders, border), rounded)

    def copies(step, stage) -> list[tuple]:
        i = tile_at(step)
        return [
            (block.tokens(values, i, whole=True), values_.at[stage]),
            (block.tokens(keys, i), keys_.at[stage]),
            (block.tokens(w, i), w_.at[stage]),
        ]

    def begin(step) -> None:
        stage = lax.rem(step, stages)
        block.start(copies(step, stage), 3 * stage)

    def add_tile(step, log_through):
        i = tile_at(step)
        stage = lax.rem(step, stages)
        ahead = step + stages - 1  # the tile whose room was emptied in the step before
        if stages == 1:
            begin(step)
        else:
            pl.when(ahead < tiles)(lambda: begin(ahead))
        write_border(i + 1 if leftwards else i)
        block.wait(3, 3 * stage)
        log_d.store(tile.log_decay(wg, w_.at[stage], block.tokens_in(i)))
        left.store(wg.load(values_.at[stage]))
        to_edge = (masks.decays_to_edge(wg, left=leftwards),)
        right.store(wg.load(keys_.at[stage]) * tile.product_of_decays(wg, to_edge, log_d))
        log_total = tile.log_across(wg, log_d)
        total = jnp.exp(log_total)
        # All blocks before any is kept: they overlap.
        keep(
            [
                wg.load(state.at[rows]) * total
                + wg.product(left.columns(rows.start, TILE).T, right)
                for rows in blocks
            ]
        )
        return None if log_through is None else log_through + log_total

    zeros = wg.zeros(block.width)
    if starts is None:
        keep([zeros for _ in blocks])
    else:
        at = (block.batch, block.head, segment)
        keep([wg.load(starts.at[*at, rows, block.own]) for rows in blocks])
    for step in range(stages - 1):
        begin(jnp.int32(step))
    log_through = lax.fori_loop(0, tiles, add_tile, None if log_decays is None else zeros)
    last = tile_at(tiles - 1)
    write_border(last if leftwards else last + 1)
    block.write_to(ends.at[end], state)
    if log_decays is not None:
        # The last thing to happen here: the room of a tile's w is free.
        w_.at[0][...] = log_through
        block.write_row(segment, w_.at[0], log_decays)
