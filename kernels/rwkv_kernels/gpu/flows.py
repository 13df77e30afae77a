"""What comes to a tile past its borders, by states, in the backward kernel.

A token reads a state decayed up to the border, as it reads tokens beyond a midpoint; and a state
that goes through the tile meets all of its decays.

At a tile's left edge its tokens meet what flow 0, which goes to the right, says to them, and what
flow 1 asks of them: the gradient of the state that goes on from the tile to the left. At its right
edge, what flow 1 says and flow 0 asks. Whoever is met at an edge is met by the same decays.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array

from rwkv_kernels.gpu import beside, masks, tile
from rwkv_kernels.gpu.call import Block
from rwkv_kernels.gpu.gradients import add_of_log
from rwkv_kernels.gpu.plan import TILE
from rwkv_kernels.gpu.rooms import Held, Sides
from rwkv_kernels.gpu.sums import Sums
from rwkv_kernels.gpu.warpgroup import Operand, Warpgroup


class Way(NamedTuple):
    """How tokens meet states that flow one way.

    Attributes:
      name: whose gradients come so: r meets what comes in at one border, and k leaves by the other.
      by: what the state is multiplied with for them.
      against: whether what is read comes from where the flow goes: the gradients of its states.
      number: the first of its barriers.
    """

    name: str
    by: str
    against: bool
    number: int

    def left(self, flow: int | Array) -> int | Array:
        """1 if the tokens' decays up to the tile's left edge act, 0 if those to the right."""
        return flow if self.against else 1 - flow

    def border(self, block: Block, flow: int | Array) -> int | Array:
        """Where the state is that a flow brings to a tile: at its left edge, or its right one."""
        return block.part + 1 - self.left(flow)

    def barrier(self, flow: int | Array) -> int | Array:
        """For `Block.wait_for_state`: what is said comes to one room, what flows ask to two."""
        return self.number + flow if self.against else self.number


SAID, ASKED = Way("r", "g", False, 0), Way("k", "v", True, 1)


def each(flows: Array | None, body: Callable[[Array, Any], Any], carry: Any) -> Any:
    """body for each flow, if there are any; how many is in main memory.

    A loop whose end the compiler does not know: all that it could work out before it, for one flow
    or for both, it has not the registers to keep.
    """
    return carry if flows is None else lax.fori_loop(0, flows[0], body, carry)


class States(NamedTuple):
    """States at all borders in main memory, and of how many flows they are, the last one: [1].

    Attributes:
      said: what is said to each tile, from beyond it.
      asked: the gradients of what goes on from each tile.
    """

    said: Any
    asked: Any
    flows: Any

    def start_said(self, block: Block, edge: int | Array, room) -> None:
        """Begins to copy what is said at an edge, 0 the left or 1 the right one, if anything is."""
        self._start(block, SAID, self.said, edge, room)

    def start_asked(self, block: Block, flow: int | Array, room) -> None:
        """As `start_said`, what a flow asks."""
        self._start(block, ASKED, self.asked, flow, room)

    def _start(self, block: Block, way: Way, array, flow: int | Array, room) -> None:
        state = block.state(array, flow, way.border(block, flow))
        pl.when((flow < self.flows[0]) & block.comes(flow, against=way.against))(
            lambda: block.start_state([(state, room)], way.barrier(flow))
        )


def start(block: Block, sides: Sides, states: States) -> None:
    """Begins to copy all states that `through_edges` begins with."""
    for flow in range(1 if block.plan.causal else 2):
        states.start_asked(block, flow, sides.asked.at[flow])
    # Nothing is said at the first tile's left edge, but to a causal one.
    edge = 0 if block.plan.causal else jnp.where(block.part == 0, 1, 0)
    states.start_said(block, edge, sides.said)


def through_edges(
    wg: Warpgroup, block: Block, sums: list[Sums], of_held: Held, of_sides: Sides, states: States,
    of_sixteen,
) -> list[Sums]:  # fmt: skip
    """What comes past a tile's borders, and what passes the tile; states as `start` leaves them."""

    def both_ways(edge: Array, sums: list[Sums]) -> list[Sums]:
        here = block.part != jnp.where(edge == 0, 0, block.plan.tiles - 1)
        both = (block.part != 0) & (block.part != block.plan.tiles - 1)

        def wait() -> None:
            block.wait_for_state(SAID.barrier(edge))
            # What flow 0 asks has been waited for when a state passed.
            first = (edge == 0) | ~both
            pl.when(first)(lambda: block.wait_for_state(ASKED.barrier(1 - edge)))

        through = functools.partial(
            _through_edge, wg, block, of_held, of_sides, of_sixteen, edge, (SAID, ASKED), wait
        )
        sums = lax.cond(here, through, lambda sums: sums, sums)
        pl.when(both & (edge == 0))(lambda: block.wait_for_state(ASKED.barrier(0)))
        passes = functools.partial(_through_whole_tile, wg, block, of_held, of_sides, edge)
        sums = lax.cond(both, passes, lambda sums: sums, sums)
        room = block.own(of_sides, anew=-60).said
        pl.when(both & (edge == 0))(lambda: states.start_said(block, 1, room))
        return sums

    def one_way(flow: Array, sums: list[Sums]) -> list[Sums]:
        def at(edge: int, way: Way, sums: list[Sums]) -> list[Sums]:
            rooms = of_held, of_sides, of_sixteen
            wait = functools.partial(block.wait_for_state, way.barrier(0))
            through = functools.partial(_through_edge, wg, block, *rooms, flow + edge, (way,), wait)
            return block.if_it_comes(flow, through, sums)

        sums = at(1, ASKED, at(0, SAID, sums))
        passes = functools.partial(_through_whole_tile, wg, block, of_held, of_sides, flow)
        return block.if_it_comes(flow, passes, sums)

    return each(states.flows, one_way if block.plan.causal else both_ways, sums)


def _through_edge(
    wg: Warpgroup, block: Block, of_held: Held, of_sides: Sides, of_sixteen, edge: Array,
    ways: Sequence[Way], wait: Callable[[], None], sums: list[Sums],
) -> list[Sums]:  # fmt: skip
    """What comes past one edge, 0 the left or 1 the right one, by the ways that do.

    wait: until the states have come.
    """
    anew = -8 * (1 + edge)
    held, sides = block.own(of_held, anew=anew).operands(), block.own(of_sides, anew=anew)
    room = Operand(sides.room)
    states = {SAID: Operand(sides.said), ASKED: Operand(sides.asked.at[1 - edge])}
    own = wg.load_raw(block.only(of_sixteen, anew=anew))
    mask = beside.to_edge(wg, own, 1 - edge, one=tile.ONE)
    log_cs = wg.products(*((mask, held.log_d.columns(*part)) for part in wg.halves))
    cs = [jnp.exp2(x) for x in log_cs]
    wait()
    new = []
    for part, c, x in zip(wg.halves, cs, sums, strict=True):
        by_ways = ((getattr(held, way.by), states[way].columns(*part)) for way in ways)
        overs, of_log = wg.products(*by_ways), []
        for way, over in zip(ways, overs, strict=True):
            own = getattr(held, way.name).columns(*part)
            over = over * c
            of_log.append(over * wg.load(own.ref))
            x = x._replace(**{way.name: getattr(x, way.name) + over})
        wg.write(room.columns(*part), functools.reduce(jnp.add, of_log))
        new.append(x)
    wg.store()
    own = wg.load_raw(block.only(of_sixteen, anew=anew - 4))
    mask = beside.to_edge(wg, own, 1 - edge, transposed=True, one=masks.ONE_AS_BITS)
    new = add_of_log(wg, new, masks.bits_as_bfloat16(mask), room)
    wg.wait_for_readers()  # here, not where the room is written: registers suffice so
    return new


def _through_whole_tile(
    wg: Warpgroup, block: Block, of_held: Held, of_sides: Sides, flow: Array, sums: list[Sums]
) -> list[Sums]:
    """All of a tile's decays act on a state that passes it."""
    anew = -40 - flow
    log_d = Operand(block.own(of_held, anew=anew).log_d)
    sides = block.own(of_sides, anew=anew)
    states = sides.said, sides.asked.at[flow]
    mask = tile.scaled(masks.ones(wg))
    log_cs = wg.products(*((mask, log_d.columns(*part)) for part in wg.halves))
    for part, log_c in zip(wg.halves, log_cs, strict=True):
        columns, seen = pl.ds(*part), 0
        of_total = wg.zeros(part[1])
        for first in wg.plan.state_blocks:
            state, of_state = (wg.load(x.at[pl.ds(first, TILE), columns]) for x in states)
            new = state * of_state
            if seen > first:  # not the rows that the block before had, too
                new = new * wg.spread(jnp.where(wg.count(0) >= seen - first, 1.0, 0.0), 0, part[1])
            of_total, seen = of_total + new, first + TILE
        wg.write(Operand(sides.room).columns(*part), of_total * jnp.exp2(log_c))
    wg.store()
    sums = add_of_log(wg, sums, masks.of_bfloat16(masks.ones(wg)), Operand(sides.room))
    wg.wait_for_readers()
    return sums
