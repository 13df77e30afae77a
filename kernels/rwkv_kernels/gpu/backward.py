"""The backward kernel: gradients of r, k, v, w and u, a tile of a head in each block of the grid.

Nothing but the inputs is read, and the states at the tile's borders. What is summed up over levels
stays in registers: the gradients of r, k and log d take 120 of a thread's 255 for N = 80. All else
lies in shared memory, where tokens as they came, tokens as products read them, and what is worked
with take turns in the same rooms, so that two blocks fit on a multiprocessor.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, BFloat16, Float

from rwkv_kernels.gpu import beside, gradients, masks, sixteens, tile, tokens, warp
from rwkv_kernels.gpu.call import Block, kernel_call
from rwkv_kernels.gpu.flows import ASKED, States, each, start, through_edges
from rwkv_kernels.gpu.grid import Grid
from rwkv_kernels.gpu.plan import TILE, Plan
from rwkv_kernels.gpu.rooms import Held, Rooms, Sides
from rwkv_kernels.gpu.warpgroup import BFLOAT16, FLOAT16, Operand, Warpgroup

_FLOWS, _LAST = 100, 101  # for `Block.own`: parts of the kernel


def backward(
    plan: Plan,
    r: Float[Array, "B T C"],
    k: Float[Array, "B T C"],
    v: Float[Array, "B T C"],
    w: Float[Array, "B T C"],
    u: Float[Array, "H N"],
    g: Float[Array, "B T C"],
    said: BFloat16[Array, "flows B H borders N N"] | None,
    asked: BFloat16[Array, "flows B H borders N N"] | None,
    *,
    interpret=None,
) -> dict[str, Array]:
    """dr, dk, dv (bfloat16) and dw (float32), and du by sequence and tile, float32 [B, tiles, C].

    g: the gradient of y, bfloat16 like r, k and v; w, u float32. said: states of what comes from
    beyond each tile; asked: the gradients of what goes on from it.
    """
    B, _, C = r.shape
    N = plan.head_size
    wg = Warpgroup(plan, N, plan.warpgroups("backward"), interpret)

    tile_, square = wg.operand(N), wg.operand(TILE)  # as they lie in shared memory
    # In turn: tokens as they come, what is held of them, and what has been found; what levels work
    # in, and what is worked with beside levels.
    w_came, *came, g_came = (wg.tokens(N, x.dtype) for x in (w, r, k, v, g))
    logs = wg.operand(N, dtype=FLOAT16)
    with_states = plan.reads_states("backward")
    of_asked = (wg.operand(N, several=(2,), rows=N),) if with_states else ()
    of_said = (wg.operand(N, rows=N),) if with_states else ()
    scratch = {
        # What is found for r and k is there while all else is still read.
        "r_and_v": wg.in_turn(
            w_came, (tile_, tile_), (wg.tokens(N, r.dtype), wg.tokens(N, k.dtype))
        ),
        "held": wg.in_turn(came, (tile_, tile_, logs, square)),
        "work": wg.in_turn(
            (tile_, tile_, tile_, square),
            (wg.numbers(N), tile_, *of_asked),
            (g_came,),
            (wg.tokens(N, v.dtype), wg.tokens(N, w.dtype)),
        ),
        "scores_or_said": wg.in_turn((square, square), of_said),
    }
    inputs = {"r": r, "k": k, "v": v, "w": w, "u": u, "g": g, "said": said, "asked": asked}
    inputs["flows"] = None if said is None else jnp.full(1, said.shape[0], jnp.int32)
    inputs |= {"meetings": masks.meetings(warp.SIXTEEN)[None], "bits": masks.bits(warp.SIXTEEN)}
    outputs = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype)
        for name, x in zip(("dr", "dk", "dv", "dw"), (r, k, v, w), strict=True)
    }
    outputs["du"] = jax.ShapeDtypeStruct((B, plan.tiles, C), jnp.float32)
    last_apart = wg.warpgroups == 1  # a last tile of few tokens takes levels
    return kernel_call(
        functools.partial(_kernel, wg), wg, inputs, outputs, scratch,
        grid=Grid(B, u.shape[0], plan.tiles, last_apart), state_rooms=3,
        copies=sum(map(len, (w_came, *came, g_came))), name="wkv6_backward",
    )  # fmt: skip


def _kernel(
    wg: Warpgroup, block: Block, *, r, k, v, w, u, g, meetings, bits,
    said, asked, flows, dr, dk, dv, dw, du, r_and_v, held, work, scores_or_said,
) -> None:  # fmt: skip
    of_w, (of_r, of_v), of_found = r_and_v
    of_came, (of_k, of_g, of_log_d, of_A) = held
    of_rooms, of_sides, of_g_came, of_last = work
    (of_dA, own_room), of_said = scores_or_said
    of_held = Held(of_r, of_k, of_v, of_g, of_log_d, of_dA, of_A)
    of_rooms, of_sides = Rooms._make((*of_rooms, own_room)), Sides(*of_sides, *of_said)
    w_, r_, k_, v_, g_ = block.own((of_w, *of_came, *of_g_came))
    held, sides = block.own(of_held), block.own(of_sides)
    i = block.part

    sources = ((r, r_), (k, k_), (v, v_), (g, g_), (w, w_))
    block.start([copy for x, to in sources for copy in block.tokens(x, i, to)])
    block.wait()
    came = [tokens.load(wg, x) for x in (r_, k_, v_, g_)]
    log2_d = tile.log2_decay(wg, w_, block.tokens_in(i))
    block.wait_for_all()
    rooms = (held.r, held.k, held.v, held.g, held.log_d)
    wg.store(*((Operand(to), x) for to, x in zip(rooms, (*came, log2_d), strict=True)))
    of_itself = sixteens.diagonal(wg, warp.meet(wg, came[3], came[2]))
    with_itself, of_u = gradients.of_bonus(
        wg, held.operands(), Operand(sides.room), u.at[block.head], of_itself
    )
    for part, x in zip(wg.halves, of_u, strict=True):
        sides.row.at[pl.ds(*part)][...] = warp.first_row(wg, x)
    block.write_to(du.at[block.batch, i], [sides.row], block.channel)
    sums = gradients.through_levels(wg, block, of_held, of_rooms, with_itself, meetings, bits)
    if wg.plan.tiles > 1 or wg.plan.causal:  # other tiles, and states
        block.wait_for_all()  # until nobody reads any more what levels worked in
    if wg.warpgroups > 1:
        sums = gradients.through_other_tile(wg, block, sums, of_held, of_rooms, meetings)
    if flows is not None:
        states = States(said, asked, flows)
        start(block, block.own(of_sides, anew=_FLOWS), states)
        sums = through_edges(wg, block, sums, of_held, of_sides, states, meetings)

    if wg.warpgroups == 1:  # a pair's registers suffice as it is
        block = block.again(anew=_LAST)
    held = block.own(of_held, anew=_LAST).operands()
    dr_, dk_ = block.own(of_found, anew=_LAST)
    # log d = ln 2 log2 d, and d log d / d logit = log d.
    log_scale = math.log(2) / tile.LOG_SCALE
    of_logits = [
        x.log_d * wg.load(held.log_d.columns(*part).ref) * log_scale
        for part, x in zip(wg.halves, sums, strict=True)
    ]
    sums = gradients.with_bonus(wg, held, u.at[block.head], of_itself, sums)
    block.wait_for_all()
    _write_halves(wg, dr_, [x.r for x in sums])
    _write_halves(wg, dk_, [x.k for x in sums])
    block.write(block.part, (dr_, dr), (dk_, dk))
    # Values last, since hardly anything else is in registers then.
    other_g = None
    if wg.warpgroups > 1:
        other_g = Operand(block.of(1 - block.index, of_held.g, anew=_LAST))
    of_values = _of_values(wg, held, other_g)
    of_values = each(
        flows,
        lambda flow, of_values: _add_of_flow(
            wg, block, of_held, of_sides, meetings, flow, of_values
        ),
        of_values,
    )
    v_, w_ = block.own(of_last, anew=_LAST)
    block.wait_for_all()
    _write_halves(wg, v_, of_values)
    _write_halves(wg, w_, of_logits)
    block.write(block.part, (v_, dv), (w_, dw))
    block.wait_for_writes()


def _of_values(wg: Warpgroup, held: Held, other_g: Operand | None) -> list[Array]:
    """dv = A^T g by halves, A the scores of all tokens with the tile's own.

    other_g: of the other of a pair of tiles, whose scores with this one's are in the room of dA.
    """
    of_parts = []
    for part in wg.halves:
        of_parts.append([(held.A.T, held.g.columns(*part))])
        if other_g is not None:
            of_parts[-1].append((held.dA, other_g.columns(*part)))
    return wg.sums_of_products(*of_parts)


def _add_of_flow(
    wg: Warpgroup, block: Block, of_held: Held, of_sides: Sides, meetings, flow: Array,
    of_values: list[Array],
) -> list[Array]:  # fmt: skip
    """of_values with what comes against a flow, whose state `through_edges` has left."""

    def add(of_values: list[Array]) -> list[Array]:
        anew = _LAST + flow
        held = block.own(of_held, anew=anew).operands()
        state = block.own(of_sides, anew=anew).asked.at[flow]
        own = wg.load_raw(block.only(meetings, anew=anew))
        mask = beside.to_edge(wg, own, ASKED.left(flow), one=tile.ONE)
        decayed = wg.load(held.k.ref) * tile.product_of_decays(wg, mask, held.log_d)
        decayed = decayed.astype(BFLOAT16)
        of_parts = (Operand(state.at[pl.ds(*part)]).T for part in wg.halves)
        return wg.add_products(of_values, *([(decayed, x)] for x in of_parts))

    return block.if_it_comes(flow, add, of_values, against=True)


def _write_halves(wg: Warpgroup, to: tokens.Parts, halves: list[Array]) -> None:
    """Writes a tile to where the copy engine takes it from."""
    for (first, _), x in zip(wg.halves, halves, strict=True):
        tokens.write(wg, to, x, first)
