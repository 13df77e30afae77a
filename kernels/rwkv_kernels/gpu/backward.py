"""The backward kernel: gradients of r, k, v, w and u, a tile of a head in each block of the grid.

Nothing but the inputs is read, and the states at the tile's borders. What is summed up over levels
stays in registers: the gradients of r, k and log d take 120 of a thread's 255 for N = 80. All else
lies in shared memory, where tokens as they came, tokens as products read them, and what is worked
with take turns in the same rooms, so that two blocks fit on a multiprocessor.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from rwkv_kernels.gpu import gradients, masks, tile
from rwkv_kernels.gpu.call import Block, kernel_call
from rwkv_kernels.gpu.gradients import Held, Rooms
from rwkv_kernels.gpu.plan import TILE, Plan
from rwkv_kernels.gpu.warpgroup import BFLOAT16, FLOAT16, Operand, Warpgroup

_LAST = 100  # for `Block.own`: the part of the kernel in which results are written


class Borders(NamedTuple):
    """States [B, H, tiles + 1, N, N] at all borders; None is nothing.

    What tokens on a side say, and what is asked of this side: the gradient of the state that goes
    to the other.
    """

    said_left: Array | None = None
    asked_left: Array | None = None
    said_right: Array | None = None
    asked_right: Array | None = None


def backward(
    plan: Plan,
    r: Float[Array, "B T C"],
    k: Float[Array, "B T C"],
    v: Float[Array, "B T C"],
    w: Float[Array, "B T C"],
    u: Float[Array, "H N"],
    g: Float[Array, "B T C"],
    borders: Borders,
    *,
    interpret=None,
) -> dict[str, Array]:
    """dr, dk, dv (bfloat16) and dw (float32), and du by sequence and tile, float32 [B, tiles, C].

    g: the gradient of y, bfloat16 like r, k and v; w, u float32.
    """
    B, _, C = r.shape
    N = plan.head_size
    wg = Warpgroup(plan, N, 1 + plan.paired, interpret)

    tile_, square = wg.operand(N), wg.operand(TILE)  # as they lie in shared memory
    # In turn: tokens as they come, and what is held of them; what levels work in, the row of du,
    # what states are read with, and what has been found.
    came = (*(wg.tokens(N, x.dtype) for x in (r, k, v, g)), wg.tokens(N, jnp.float32))
    logs = wg.operand(N, dtype=FLOAT16)
    held = Held(tile_, tile_, tile_, tile_, logs, square, square)
    rooms = Rooms(tile_, tile_, tile_, square)
    row = (wg.tokens(N, jnp.float32),)
    state = (wg.operand(N, rows=N),) if plan.stateful else ()
    found = (wg.tokens(N, r.dtype), wg.tokens(N, k.dtype))
    scratch = {
        "tokens": wg.in_turn(came, tuple(held)),
        "work": wg.in_turn(tuple(rooms), row, (tile_, tile_, *state), (*found, *state)),
        "meetings_": wg.operand(TILE, dtype=FLOAT16),
    }
    inputs = {"r": r, "k": k, "v": v, "w": w, "u": u, "g": g, **borders._asdict()}
    inputs["meetings"] = masks.meetings()
    outputs = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype)
        for name, x in zip(("dr", "dk", "dv", "dw"), (r, k, v, w), strict=True)
    }
    outputs["du"] = jax.ShapeDtypeStruct((B, plan.tiles, C), jnp.float32)
    return kernel_call(
        functools.partial(_kernel, wg), wg, inputs, outputs, scratch,
        grid=(B, u.shape[0], plan.tiles), copies=5, name="wkv6_backward",
    )  # fmt: skip


def _kernel(
    wg: Warpgroup, block: Block, *, r, k, v, w, u, g, meetings,
    said_left, asked_left, said_right, asked_right,
    dr, dk, dv, dw, du, tokens, work, meetings_,
) -> None:  # fmt: skip
    (of_came, of_held), (of_rooms, of_row, of_sides, of_found) = tokens, work
    of_held, of_rooms = Held(*of_held), Rooms(*of_rooms)
    r_, k_, v_, g_, w_ = block.own(of_came)
    held, rooms = block.own(of_held), block.own(of_rooms)
    (row,) = block.own(of_row)
    own_meetings = block.own(meetings_)
    i = block.part

    sources = ((r, r_), (k, k_), (v, v_), (g, g_), (w, w_))
    block.fill([(block.tokens(x, i), to) for x, to in sources])
    came = [wg.load_raw(x) for x in (r_, k_, v_, g_)]
    log2_d = tile.log2_decay(wg, w_, block.tokens_in(i))
    block.wait_for_all()
    wg.store(
        *((Operand(to), x) for to, x in zip((*held[:4], held.log_d), (*came, log2_d), strict=True)),
        (Operand(own_meetings), wg.load_raw(meetings)),
    )
    with_itself = tile.with_itself(wg, Operand(held.r), Operand(held.k), u.at[block.head])
    wg.store((Operand(held.dA), wg.product(Operand(held.g), Operand(held.v).T)))
    sides = [  # left or right, what is said there and what is asked there
        (left, block.state(said, border), block.state(asked, border))
        for left, border, said, asked in (
            (True, i, said_left, asked_left),
            (False, i + 1, said_right, asked_right),
        )
        if said is not None or asked is not None
    ]
    passing = [
        [block.state(x, border) for x, border in pair]
        for pair in (
            ((said_left, i), (asked_right, i + 1)),
            ((said_right, i + 1), (asked_left, i)),
        )
        if pair[0][0] is not None
    ]
    of_itself = wg.sum_of_columns(wg.load(held.g) * wg.load(held.v))
    of_u = gradients.of_bonus(wg, held, Operand(rooms.E), of_itself)
    block.wait_for_all()
    _write_halves(wg, row, of_u)
    block.write_row(i, row, du)
    block.wait_for_all()
    sums = gradients.of_tokens_themselves(wg, held, u.at[block.head], of_itself)

    if sides:
        sums = gradients.through_states(wg, block, sums, of_held, of_sides, sides, meetings_)
        sums = gradients.through_whole_tile(wg, block, sums, of_held.log_d, of_sides[0], passing)
        block.wait_for_all()
    if wg.plan.tokens > 1:
        sums = gradients.through_levels(wg, block, sums, of_held, of_rooms, meetings_)
    if wg.plan.paired:
        sums = gradients.through_other_tile(wg, block, sums, of_held, of_rooms, meetings_)

    held = block.own(of_held, anew=_LAST).operands()
    dr_, dk_, *state = block.own(of_found, anew=_LAST)
    _, _, v_, _, w_ = block.own(of_came, anew=_LAST)
    # log d = ln 2 log2 d, and d log d / d logit = log d.
    log_scale = math.log(2) / tile.LOG_SCALE
    of_logits = [
        x.log_d * wg.load(held.log_d.columns(*part).ref) * log_scale
        for part, x in zip(wg.halves, sums, strict=True)
    ]
    block.wait_for_all()
    _write_halves(wg, dr_, [x.r for x in sums])
    _write_halves(wg, dk_, [x.k for x in sums])
    block.write(i, (dr_, dr), (dk_, dk))
    # Values last, since hardly anything else is in registers then.
    other_g = Operand(block.others(of_held.g, anew=_LAST)) if wg.plan.paired else None
    met = block.own(meetings_, anew=_LAST)
    of_values = _of_values(wg, block, held, other_g, with_itself, sides, state, met)
    block.wait_for_all()
    _write_halves(wg, v_, of_values)
    _write_halves(wg, w_, of_logits)
    block.write(i, (v_, dv), (w_, dw))


def _of_values(
    wg: Warpgroup, block: Block, held: Held, other_g: Operand | None,
    with_itself: Float[Array, "64"], sides, state, met,
) -> list[Array]:  # fmt: skip
    """dv = A^T g by halves, A the scores of all tokens with the tile's own.

    other_g: of the other of a pair of tiles, whose scores with this one's are in the room of dA.
    """
    found = []
    for part in wg.halves:
        g = held.g.columns(*part)
        of_part = wg.spread(with_itself, 0, part[1]) * wg.load(g.ref)
        if wg.plan.tokens > 1:
            of_part = of_part + wg.product(held.A.T, g)
        if other_g is not None:
            of_part = of_part + wg.product(held.dA, other_g.columns(*part))
        found.append(of_part)
    for left, _, asked in sides:
        if asked is None:
            continue
        block.fill([(asked, *state)])
        mask = masks.decays_to_edge(wg.load_raw(met), left=left)
        decayed = wg.load(held.k.ref) * tile.product_of_decays(wg, mask, held.log_d)
        decayed = decayed.astype(BFLOAT16)
        for at, part in enumerate(wg.halves):
            found[at] = found[at] + wg.product(decayed, Operand(state[0].at[pl.ds(*part)]).T)
    return found


def _write_halves(wg: Warpgroup, to, halves: list[Array]) -> None:
    """Writes a tile to where the copy engine takes it from."""
    for part, x in zip(wg.halves, halves, strict=True):
        to.at[:, pl.ds(*part)][...] = x.astype(to.dtype)
