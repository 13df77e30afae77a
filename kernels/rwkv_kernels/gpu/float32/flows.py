"""What comes to a tile past its borders, by states in words, in the backward kernel."""

import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Float16

from rwkv_kernels.gpu import beside, masks, tokens, words
from rwkv_kernels.gpu.float32 import levels
from rwkv_kernels.gpu.float32.rooms import HALVES, STATE, Work
from rwkv_kernels.gpu.flows import ASKED, SAID, Way
from rwkv_kernels.gpu.plan import TILE
from rwkv_kernels.gpu.sums import Sums
from rwkv_kernels.gpu.words import Words

Part = tuple[int, int]  # first channel, and how many

_VALUES, _FLOWS = 200, 500  # for `Block.own`: parts of the kernel


def of_values(work: Work, flow: Array, found: list[Array]) -> list[Array]:
    """Gradients of v, by halves, with what comes against a flow."""
    wg, block = work.wg, work.block

    def add(found: list[Array]) -> list[Array]:
        anew = _VALUES + flow
        wg.wait_for_readers()  # of what was there before
        room = work.at(anew).work[STATE]
        _start(work, ASKED, flow, room)
        of = work.tile(anew)
        mask = beside.to_edge(wg, work.own(anew), ASKED.left(flow))
        keys = levels.decayed(wg, of.k, mask, of.log_d)
        block.wait_for_state(ASKED.number)
        of_parts = []
        for first, count in wg.halves:
            state = words.operands([x.at[pl.ds(first, count)] for x in room])
            of_parts.append(words.pairs(keys, words.turned(state)))
        return wg.add_products(found, *of_parts)

    return block.if_it_comes(flow, add, found, against=True)


def through_flow(work: Work, part: Part, n: int, flow: Array, sums: Sums) -> Sums:
    """What comes past a tile's borders through states that flow one way, and passes the tile."""
    wg, block = work.wg, work.block
    anew = _FLOWS + 20 * (2 * n + flow)

    def state(way: Way, anew: Array) -> Words:
        return words.operands(work.at(anew).work[HALVES + n][way.number])

    def through(way: Way, sums: Sums) -> Sums:
        here = anew + 1 + way.number
        at, of = work.at(here), work.tile(here)
        by = words.operands(getattr(at, way.by)[1])
        mask = beside.to_edge(wg, work.own(here), way.left(flow))
        (over,) = wg.sums_of_products(words.pairs(by, state(way, here)))
        over = over * levels.decays(wg, mask, of.log_d, *part)
        sums = sums._replace(**{way.name: getattr(sums, way.name) + over})
        over = over * tokens.between(wg, getattr(of, way.name), *part)
        mask = beside.to_edge(wg, work.own(here + 4), way.left(flow), transposed=True)
        return add_of_log(work, sums, mask, over, here)

    def passes(sums: Sums) -> Sums:
        """All of a tile's decays act on a state that passes."""
        here, seen = anew + 3, 0
        total = wg.zeros(part[1])
        for first in wg.plan.state_blocks:
            of_rows = []
            for way in (SAID, ASKED):
                refs = [x.ref.at[pl.ds(first, TILE)] for x in state(way, here)]
                of_rows.append(words.load(wg, words.operands(refs)))
            new = of_rows[0] * of_rows[1]
            if seen > first:  # rows that the block before had, too
                new = jnp.where(wg.index(part[1], 0) >= seen - first, new, 0.0)
            total, seen = total + new, first + TILE
        total = total * levels.decays(wg, masks.ones(wg), work.tile(here).log_d, *part)
        return add_of_log(work, sums, masks.ones(wg), total, here)

    wg.wait_for_readers()  # of what states take the place of
    for way, room in zip((SAID, ASKED), work.at(anew).work[HALVES + n], strict=True):
        pl.when(block.comes(flow, against=way.against))(
            functools.partial(_start, work, way, flow, room, part)
        )
    for way in (SAID, ASKED):
        pl.when(block.comes(flow, against=way.against))(
            functools.partial(block.wait_for_state, way.number)
        )
        sums = block.if_it_comes(flow, functools.partial(through, way), sums, against=way.against)
    add: Callable[[Sums], Sums] = functools.partial(block.if_it_comes, flow, passes)
    return block.if_it_comes(flow, add, sums, against=True)


def add_of_log(
    work: Work, sums: Sums, mask: Float16[Array, "64 64"], of_log: Float[Array, "64 n"],
    anew: int | Array,
) -> Sums:  # fmt: skip
    """of_log: gradients of log c; mask: which log decays (row) are in which token's."""
    wg = work.wg
    room = words.columns(words.operands(work.at(anew).D[1]), 0, of_log.shape[1])
    wg.wait_for_readers()
    words.write(wg, room, of_log)
    wg.store()
    (total,) = wg.add_products([sums.log_d], words.pairs([masks.of_bfloat16(mask)], room))
    return sums._replace(log_d=total)


def _start(work: Work, way: Way, flow: Array, room: Sequence, part: Part | None = None) -> None:
    """Begins to copy a state, or half of its columns, in words."""
    block = work.block
    border = way.border(block, flow)
    copies = []
    for array, to in zip(work.said if way is SAID else work.asked, room, strict=True):
        source = block.state(array, flow, border)
        copies.append((source if part is None else source.at[:, pl.ds(*part)], to))
    block.start_state(copies, way.number)
