"""The kernel that goes over a sequence for the states at the borders of its tiles.

A state is held as value x key, so that a decay scales its columns, which are a tile's columns: its
channels of the key never meet, and blocks share them. It goes on in float32; tiles read it as their
products do, in bfloat16, one word or two.

A long sequence of few heads is cut into segments that are swept side by side, twice: once from
nothing, for the sum that each adds and the decay that it lets through, and once more from what the
segments before it have left.

A gradient wants two sums, whose flows go side by side, too: of a head each reads the same decays.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, BFloat16, Float, Float32

from rwkv_kernels.gpu import masks, tile, tokens, warp, words
from rwkv_kernels.gpu.call import Block, kernel_call
from rwkv_kernels.gpu.grid import Grid
from rwkv_kernels.gpu.plan import TILE, Plan, parts
from rwkv_kernels.gpu.warpgroup import BFLOAT16, FLOAT16, Warpgroup, halves


class Sum(NamedTuple):
    """Of values^T keys, decayed on the way, of the tokens to one side of each border: rightwards of
    those to its left, leftwards of those to its right.

    With r for the keys and the gradient of y for the values, the gradients of the states that go
    the other way.

    Attributes:
      values, keys: tokens.
      leftwards: of each flow, whether it goes so; two go opposite ways.
      initial: the state at the border where a sweep begins, value x key; None is zeros.
    """

    values: Float[Array, "B T C"]
    keys: Float[Array, "B T C"]
    leftwards: tuple[bool, ...]
    initial: Float32[Array, "B H N N"] | None = None


class Found(NamedTuple):
    """A sum's states.

    Attributes:
      borders: those at the borders, the first of which is to the left of all tiles, in words of
        them (`words.py`). Nobody reads a state where a sweep ends, nor that of zeros where it
        begins: it is not written there.
      ends: if the WKV is causal, those at which sweeps end, float32 [flows, B, H, N, N], else None.
    """

    borders: tuple[BFloat16[Array, "flows B H borders N N"], ...]
    ends: Any


def states(
    plan: Plan, w: Float[Array, "B T C"], sums: Sequence[Sum], *, interpret=None
) -> list[Found]:
    """Each sum's states, in their order; w: decay logits, float32.

    All sums have the same number of flows, and either all have an initial state or none has.
    """
    sweep = functools.partial(_sweep, plan, w, sums, interpret)
    segments = plan.tiling.sweep_segments
    initials = [x.initial for x in sums for _ in x.leftwards]
    if segments == 1:
        given = [initial for initial in initials if initial is not None]
        start = jnp.stack(given)[:, :, :, None] if given else None
        results = sweep(start, borders=True, ends=plan.causal)
        return _found(results, sums, results["ends"][:, :, :, 0] if plan.causal else None)

    alone = sweep(None, borders=False, ends=True)
    B, _, C = w.shape
    N, flows = plan.head_size, len(initials)
    # [flows, B, segments, H * N] -> [flows, B, segments, H, 1, N]: a decay of each of a state's
    # columns.
    through = jnp.exp2(alone["log_decays"]).reshape(flows, B, segments, C // N, 1, N)
    starts, ends = [], []
    for flow, to_left in enumerate(to_left for x in sums for to_left in x.leftwards):
        initial = initials[flow]
        state = jnp.zeros((B, C // N, N, N), jnp.float32) if initial is None else initial
        of_flow = {}
        for i in reversed(range(segments)) if to_left else range(segments):
            of_flow[i] = state
            state = state * through[flow, :, i] + alone["ends"][flow, :, :, i]
        starts.append(jnp.stack([of_flow[i] for i in range(segments)], axis=2))
        ends.append(state)
    results = sweep(jnp.stack(starts), borders=True, ends=False)
    return _found(results, sums, jnp.stack(ends) if plan.causal else None)


def _found(results: dict[str, Array], sums: Sequence[Sum], ends: Array | None) -> list[Found]:
    found, first = [], 0
    for i, x in enumerate(sums):
        words = (results[name] for name in _borders(i, 2) if name in results)
        last = first + len(x.leftwards)
        found.append(Found(tuple(words), None if ends is None else ends[first:last]))
        first = last
    return found


def _borders(i: int, words: int) -> tuple[str, ...]:
    """What the i-th sum's states at borders are called, in so many words."""
    return (f"borders{i}", f"low_borders{i}")[:words]


def _sweep(
    plan: Plan, w, sums: Sequence[Sum], interpret, starts, *, borders: bool, ends: bool
) -> dict[str, Array]:
    """Sweeps each segment from its state in `starts`, [flows, B, H, segments, N, N], or from
    nothing; flows are those of all sums.

    Gives, with `ends`, the states in which segments end ("ends", like `starts`), and with `borders`
    those at borders (`_borders`), else the logs (to base 2) of what segments let through, [flows,
    B, segments, C] ("log_decays").
    """
    N, how = plan.head_size, plan.tiling
    wg = Warpgroup(plan, N // how.sweep_blocks, interpret=interpret)
    (B, _, C), stages, dtype = w.shape, how.sweep_stages, sums[0].values.dtype
    scratch = {
        "values_": wg.tokens(N, dtype, stages=stages),
        "keys_": wg.tokens(wg.width, dtype, stages=stages),
        "w_": wg.tokens(wg.width, jnp.float32, stages=stages),
        "log_d": plan.words * (wg.operand(wg.width, dtype=FLOAT16),),
        "left": plan.words * (wg.operand(N),),
        "right": plan.words * (wg.operand(wg.width),),
        "rounded": plan.words
        * (tuple(plgpu.SMEM((N, part), BFLOAT16) for part in parts(wg.width, 2)),),
    }
    directions = tuple(x.leftwards for x in sums)
    flows = sum(map(len, directions))
    inputs = {"w": w, "starts": starts, "meetings": masks.meetings()}
    inputs |= {"ends": None, "log_decays": None}
    outputs = {}
    if ends:
        of_ends = (flows, B, C // N, how.sweep_segments, N, N)
        outputs["ends"] = jax.ShapeDtypeStruct(of_ends, jnp.float32)
    for i, x in enumerate(sums):
        inputs |= {f"values{i}": x.values, f"keys{i}": x.keys}
        if borders:
            of_word = (len(x.leftwards), B, C // N, plan.tiles + 1, N, N)
            of_words = jax.ShapeDtypeStruct(of_word, BFLOAT16)
            outputs |= dict.fromkeys(_borders(i, plan.words), of_words)
    if not borders:
        logs = (flows, B, how.sweep_segments, C)
        outputs["log_decays"] = jax.ShapeDtypeStruct(logs, jnp.float32)
    return kernel_call(
        functools.partial(_kernel, wg, directions), wg, inputs, outputs, scratch,
        grid=Grid(B, C // N, flows * how.sweep_segments * how.sweep_blocks),
        copies=sum(len(scratch[name]) for name in ("values_", "keys_", "w_")), stages=stages,
        name=f"wkv6_{'' if len(sums) == 1 else 'both_'}{'states' if borders else 'segments'}",
    )  # fmt: skip


def _kernel(
    wg: Warpgroup, directions: tuple[tuple[bool, ...], ...], block: Block, *, w, starts, meetings,
    ends, log_decays, values_, keys_, w_, log_d, left, right, rounded, **of_sums: Any,
) -> None:  # fmt: skip
    of_rooms, rooms = (log_d, left, right), block.own((log_d, left, right))
    plan, stages = wg.plan, wg.plan.tiling.sweep_stages
    tiles = plan.tiles // plan.tiling.sweep_segments
    steps = tiles if ends is not None else tiles - 1  # what the last tile adds is for the end
    flow, segment = (f(block.part, plan.tiling.sweep_segments) for f in (lax.div, lax.rem))
    of_sum, own_flow = (f(flow, len(directions[0])) for f in (lax.div, lax.rem))
    # A bit for each sum: whether the first of its flows goes to the left.
    firsts = sum(int(first) << i for i, (first, *_) in enumerate(directions))
    leftwards = own_flow ^ ((firsts >> of_sum) & 1)
    borders = of_sums.get("borders0")
    blocks = [pl.ds(first, TILE) for first in plan.state_blocks]
    of_logs = FLOAT16 if plan.words == 1 else jnp.float32  # before they are split
    to_edge = tile.scaled(masks.decays_to_edge(wg.load_raw(meetings), leftwards))
    across = tile.scaled(masks.ones(wg))
    # How many tiles are on their way: a tile's room is free in the middle of its step, where two
    # words and two stages have not the registers to fill it again.
    midway = plan.words == 1 or stages == 1
    ahead = stages if midway else stages - 1

    def tile_at(step):
        return tiles * segment + jnp.where(leftwards != 0, tiles - 1 - step, step)

    def leave_border(state) -> None:
        """Rounds the state at a border; threads wait for each other first."""
        block.wait_for_writes()  # of the border before
        for rows, x in zip(blocks, state, strict=True):  # where they overlap they agree
            for room, word in zip(rounded, words.of(wg, x, plan.words, BFLOAT16), strict=True):
                tokens.write(wg, [part.at[rows] for part in room], word)

    def for_the_sum(do: Callable[[int], None]) -> None:
        """do(i) for the sum that the block works on."""
        if len(directions) == 1:
            return do(0)
        for i in range(len(directions)):
            pl.when(of_sum == i)(functools.partial(do, i))

    def write_border(border) -> None:
        """Begins to copy what all threads have left."""

        def write(i: int) -> None:
            for room, name in zip(rounded, _borders(i, plan.words), strict=True):
                here = of_sums[name].at[own_flow, block.batch, block.head, border]
                block.write_to(here, room, block.first, committed=True)

        for_the_sum(write)

    def pieces(columns: int) -> tuple[tuple[int, int], ...]:
        """Of channels: what is in two words is in as many registers."""
        return ((0, columns),) if plan.words == 1 else halves(columns)

    def at(of_stages, stage) -> list:
        return [part.at[stage] for part in of_stages]

    def begin(step, *, committed: bool = False) -> None:
        stage, there = lax.rem(step, stages), tile_at(step)
        block.start(block.tokens(w, there, at(w_, stage)), stage, committed=committed)

        def start(i: int) -> None:
            values = block.tokens(of_sums[f"values{i}"], there, at(values_, stage), whole=True)
            keys = block.tokens(of_sums[f"keys{i}"], there, at(keys_, stage))
            block.start([*values, *keys], stage, committed=True)

        for_the_sum(start)

    def add_tile(step, carry):
        again = rooms if plan.words == 1 else block.own(of_rooms, anew=step)
        log_d, left, right = map(words.operands, again)
        state, log_through = carry
        i = tile_at(step)
        stage = lax.rem(step, stages)
        if not midway:
            pl.when(step + ahead < steps)(lambda: begin(step + ahead))
        written = step > 0 if starts is None else True  # nobody reads zeros
        if borders is not None:
            pl.when(written)(lambda: leave_border(state))
        block.wait(stage)
        if borders is None:
            wg.wait_for_readers()
        words.write(wg, log_d, tile.log2_decay(wg, at(w_, stage), block.tokens_in(i), of_logs))
        for part in pieces(plan.head_size):
            x = tokens.between(wg, at(values_, stage), *part)
            words.write(wg, words.columns(left, *part), x)
        wg.store()
        if borders is not None:
            pl.when(written)(lambda: write_border(i + leftwards))
        log_totals = []
        for part in pieces(wg.width):
            of_keys = wg.float32(tokens.between(wg, at(keys_, stage), *part))
            of_part = words.columns(log_d, *part)
            sums = (words.pairs([mask], of_part) for mask in (to_edge, across))
            log_c, log_total = wg.sums_of_products(*sums)
            words.write(wg, words.columns(right, *part), of_keys * jnp.exp2(log_c))
            log_totals.append(log_total)
        wg.store()
        if midway:
            pl.when(step + ahead < steps)(lambda: begin(step + ahead, committed=True))
        log_total = warp.first_row(wg, warp.joined(wg, log_totals))
        total = wg.spread(jnp.exp2(log_total), 1, block.width)
        of_rows = (words.turned(words.columns(left, first, TILE)) for first in plan.state_blocks)
        sums = (words.pairs(x, right) for x in of_rows)
        state = wg.add_products([x * total for x in state], *sums)
        return state, None if log_through is None else log_through + log_total

    zeros = wg.zeros(block.width)
    state = [zeros for _ in blocks]
    if starts is not None:
        start = starts.at[flow, block.batch, block.head, segment]
        state = [wg.load(start.at[rows, block.of_head]) for rows in blocks]
    for step in range(min(ahead, steps)):
        begin(jnp.int32(step))
    log_through = None if log_decays is None else warp.first_row(wg, zeros)
    state, log_through = lax.fori_loop(0, steps, add_tile, (state, log_through))
    if ends is None:
        leave_border(state)
        wg.store()
        write_border(tile_at(tiles - 1) + leftwards)
        block.wait_for_writes()
        return

    # The last thing to happen here: the room of a tile's w is free.
    room = at(w_, 0)
    for rows, x in zip(blocks, state, strict=True):
        wg.wait_for_readers()
        tokens.write(wg, room, x)
        end = ends.at[flow, block.batch, block.head, segment, rows]
        block.write_to(end, room, block.first)
        block.wait_for_writes(arrived=True)  # the next one overlaps, and agrees
    if log_decays is not None:
        wg.wait_for_readers()
        tokens.write(wg, room, wg.spread(log_through, 1, block.width))
        row = [part.at[0] for part in room]
        block.write_to(log_decays.at[flow, block.batch, segment], row, block.channel)
        block.wait_for_writes()
