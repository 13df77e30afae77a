"""What comes to a tile past its borders, by states, in the backward kernel.

A token reads a state decayed up to the border, as it reads tokens beyond a midpoint; and a state
that goes through the tile meets all of its decays.
"""

import functools
from collections.abc import Callable
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
      number: the state's and its room's.
    """

    name: str
    by: str
    against: bool
    number: int

    def left(self, flow: int | Array) -> int | Array:
        """1 if the tokens' decays up to the tile's left edge act, 0 if those to the right."""
        return flow if self.against else 1 - flow

    def start(self, block: Block, states, room, flow: int | Array, flows: int | Array) -> None:
        """Begins to copy the state that a flow brings, if there is such a flow and one comes.

        states: those at all borders, in main memory.
        """
        border = block.part + 1 - self.left(flow)
        pl.when((flow < flows) & block.comes(flow, against=self.against))(
            lambda: block.start_state([(block.state(states, flow, border), room)], self.number)
        )


SAID, ASKED = Way("r", "g", False, 0), Way("k", "v", True, 1)


def each(flows: Array | None, body: Callable[[Array, Any], Any], carry: Any) -> Any:
    """body for each flow, if there are any; how many is in main memory.

    A loop whose end the compiler does not know: all that it could work out before it, for one flow
    or for both, it has not the registers to keep.
    """
    return carry if flows is None else lax.fori_loop(0, flows[0], body, carry)


def through_flow(
    wg: Warpgroup, block: Block, sums: list[Sums], of_held: Held, of_sides: Sides, said, asked,
    of_sixteen, flow: Array, flows: Array,
) -> list[Sums]:  # fmt: skip
    """What comes past a tile's borders through states that flow one way, and passes the tile.

    said: what is said to the tile, and asked: the gradient of what goes on from it, states at all
    borders in main memory, of which the flow's are on their way; leaves the next flow's on theirs.
    """
    anew = -8 * (1 + flow)

    def through(way: Way, sums: list[Sums]) -> list[Sums]:
        here = anew + way.number
        held, sides = (block.own(x, anew=here).operands() for x in (of_held, of_sides))
        state = sides.states[way.number]
        own = wg.load_raw(block.only(of_sixteen, anew=here))
        mask = beside.to_edge(wg, own, way.left(flow))
        new = []
        by, mask = getattr(held, way.by), tile.scaled(mask)
        found = wg.products(
            *((by, state.columns(*part)) for part in wg.halves),
            *((mask, held.log_d.columns(*part)) for part in wg.halves),
        )
        half = len(wg.halves)
        for part, x, over, log_c in zip(wg.halves, sums, found[:half], found[half:], strict=True):
            own = getattr(held, way.name).columns(*part)
            over = over * jnp.exp2(log_c)
            wg.write(sides.room.columns(*part), over * wg.load(own.ref))
            new.append(x._replace(**{way.name: getattr(x, way.name) + over}))
        wg.store()
        own = wg.load_raw(block.only(of_sixteen, anew=here - 4))
        mask = beside.to_edge(wg, own, way.left(flow), transposed=True)
        new = add_of_log(wg, new, mask, sides.room)
        wg.wait_for_readers()  # here, not where the room is written: registers suffice so
        return new

    def passes(sums: list[Sums]) -> list[Sums]:
        add = functools.partial(_through_whole_tile, wg, block, of_held, of_sides, anew)
        return block.if_it_comes(flow, add, sums)

    def wait(way: Way) -> None:
        pl.when(block.comes(flow, against=way.against))(lambda: block.wait_for_state(way.number))

    def start_next(way: Way, states) -> None:
        rooms = block.own(of_sides, anew=anew + 2 + way.number).states
        way.start(block, states, rooms[way.number], flow + 1, flows)

    wait(SAID)
    sums = block.if_it_comes(flow, functools.partial(through, SAID), sums)
    wait(ASKED)
    sums = block.if_it_comes(flow, passes, sums, against=True)
    start_next(SAID, said)
    sums = block.if_it_comes(flow, functools.partial(through, ASKED), sums, against=True)
    start_next(ASKED, asked)
    return sums


def _through_whole_tile(
    wg: Warpgroup, block: Block, of_held: Held, of_sides: Sides, anew, sums: list[Sums]
) -> list[Sums]:
    """All of a tile's decays act on a state that passes, as `through_flow` leaves it."""
    log_d = Operand(block.own(of_held, anew=anew).log_d)
    _, own_room, states = block.own(of_sides, anew=anew)
    mask = tile.scaled(masks.ones(wg))
    log_cs = wg.products(*((mask, log_d.columns(*part)) for part in wg.halves))
    for part, log_c in zip(wg.halves, log_cs, strict=True):
        columns, seen = pl.ds(*part), 0
        of_total = wg.zeros(part[1])
        for first in wg.plan.state_blocks:
            state, of_state = (wg.load(x.at[pl.ds(first, TILE), columns]) for x in states)
            new = state * of_state
            if seen > first:  # rows that the block before had, too
                new = jnp.where(wg.index(part[1], 0) >= seen - first, new, 0.0)
            of_total, seen = of_total + new, first + TILE
        wg.write(Operand(own_room).columns(*part), of_total * jnp.exp2(log_c))
    wg.store()
    sums = add_of_log(wg, sums, masks.ones(wg), Operand(own_room))
    wg.wait_for_readers()
    return sums
