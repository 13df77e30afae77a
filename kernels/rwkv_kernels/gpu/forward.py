"""The forward kernel: y, a tile of a head of a sequence by each warpgroup.

Sequences of up to 256 tokens are worked on by one block, whose warpgroups read each other's shared
memory; what comes from beyond a block comes as states.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, BFloat16, Float, Float16

from rwkv_kernels.gpu import beside, choose, gentle, masks, sixteens, tile, tokens, warp
from rwkv_kernels.gpu.call import Block, kernel_call
from rwkv_kernels.gpu.grid import Grid
from rwkv_kernels.gpu.plan import TILE, Plan
from rwkv_kernels.gpu.warpgroup import BFLOAT16, FLOAT16, Operand, Warpgroup

Met = Callable[[int], masks.Mask]  # gives meetings in a part of the kernel

_NEAR, _FAR, _SIXTEENS, _GENTLE = 101, 102, 103, 104  # for `Block.own`: parts of the kernel


def forward(
    plan: Plan,
    r: Float[Array, "B T C"],
    k: Float[Array, "B T C"],
    v: Float[Array, "B T C"],
    w: Float[Array, "B T C"],
    u: Float[Array, "H N"],
    states: BFloat16[Array, "flows B H borders N N"] | None,
    *,
    interpret=None,
) -> Float[Array, "B T C"]:
    """y; r, k, v bfloat16, w and u float32. states: of what comes from beyond each tile."""
    N = plan.head_size
    wg = Warpgroup(plan, N, plan.warpgroups("forward"), interpret)
    flows = 1 if states is None else states.shape[0]
    state = (wg.operand(N, rows=N),) if plan.reads_states("forward") else ()
    operand = (wg.operand(N),)
    scratch = {
        # In turn: tokens as they come, or go, and as they are read.
        "of_r": wg.tokens(N, r.dtype),
        "w_or_keys": wg.in_turn(
            wg.tokens(N, jnp.float32), (wg.operand(N, dtype=FLOAT16), *operand)
        ),
        "k_or_state": wg.in_turn(wg.tokens(N, k.dtype), state[: flows - 1]),
        "of_v": wg.in_turn(wg.tokens(N, v.dtype), operand),
        "first_state": state,
    }
    copies = sum(len(wg.tokens(N, x.dtype)) for x in (r, k, v, w))
    inputs = {"r": r, "k": k, "v": v, "w": w, "u": u, "states": states}
    inputs |= {"meetings": masks.meetings(warp.SIXTEEN)[None], "bits": masks.bits(warp.SIXTEEN)}
    return kernel_call(
        functools.partial(_kernel, wg), wg, inputs,
        {"y": jax.ShapeDtypeStruct(v.shape, v.dtype)}, scratch,
        grid=Grid(r.shape[0], u.shape[0], plan.tiles), copies=copies,
        name="wkv6_forward",
    )["y"]  # fmt: skip


def _kernel(
    wg: Warpgroup, block: Block, *, r, k, v, w, u, states, meetings, bits, y,
    of_r, w_or_keys, k_or_state, of_v, first_state,
) -> None:  # fmt: skip
    (w_came, (of_log_d, of_keys)), (of_k, second_state) = w_or_keys, k_or_state
    v_came, (of_v,) = of_v
    of_states = *first_state, *second_state
    r_, k_, v_, w_ = block.own((of_r, of_k, v_came, w_came))
    log_d = Operand(block.own(of_log_d))
    i = block.part

    places = ((r, r_), (k, k_), (v, v_), (w, w_))
    block.start([copy for x, to in places for copy in block.tokens(x, i, to)])
    _start(block, states, of_states, range(len(first_state)))
    block.wait()
    v_ = tokens.load(wg, v_)
    log2_d = tile.log2_decay(wg, w_, block.tokens_in(i))
    block.wait_for_all()
    wg.store((Operand(block.own(of_v)), v_), (log_d, log2_d))
    rooms = of_r, of_k, of_log_d, of_keys

    def of_sixteen(anew: int | Array) -> Float16[Array, "64 16"]:
        return wg.load_raw(block.only(meetings, anew=anew))

    def met(anew: int) -> Float16[Array, "64 64"]:
        """Made again where it is wanted: it would be in too many registers."""
        return beside.meetings(wg, of_sixteen(anew))

    def by_levels() -> BFloat16[Array, "64 64"]:
        r_, k_ = (tokens.load(wg, x) for x in block.own((of_r, of_k), anew=_SIXTEENS))
        itself = tile.with_itself(wg, r_, k_, u.at[block.head])
        by_sixteen = sixteens.sixteens(wg, r_)

        def load(bit: int | Array) -> Iterator[tuple[Array, Array]]:
            again = block.own(of_k, anew=bit)  # with k in registers, too, a block less would fit
            yield from zip(by_sixteen, tokens.sixteens(wg, again), strict=True)

        of_levels = of_sixteen(_SIXTEENS), block.levels
        A = sixteens.scores(wg, load, log2_d, itself, *of_levels)
        A = beside.zeros(wg, A)
        if wg.plan.levels <= warp.LEVELS:
            return A
        return _levels_beyond_sixteen(wg, block, A, rooms, met)

    def at_once() -> BFloat16[Array, "64 64"]:
        A = gentle.scores(wg, block, rooms, bits, answer)

        def with_themselves() -> tuple[BFloat16[Array, "64 64"]]:
            r_, k_ = block.own((of_r, of_k), anew=_GENTLE)
            itself = tile.with_itself_in_turn(wg, r_, k_, u.at[block.head], answer.gentle)
            return (A + beside.zeros(wg, sixteens.on_diagonal(wg, itself).astype(BFLOAT16)),)

        # Apart, that nothing of it is in registers before; 9, a number no other part has.
        nothing = choose.anything(wg, TILE, BFLOAT16)
        return choose.apart(answer.gentle, 9, with_themselves, nothing)[0]

    if wg.plan.levels > warp.LEVELS:
        # With four warpgroups' registers the last compiler would do products one by one if a tile
        # of few tokens took levels.
        count = block.tokens_in(i) if wg.warpgroups <= 2 else jnp.int32(TILE)
        answer = gentle.ask(wg, count, of_sixteen(_GENTLE), log_d)
        A = lax.cond(answer.gentle != 0, at_once, by_levels)
    else:
        A = by_levels()
    block.wait_for_all()
    _start(block, states, of_states, range(1, len(of_states)))  # nobody reads k any more
    if wg.warpgroups > 1:
        out = _of_all_tiles(wg, block, A, (of_r, of_k, of_log_d, of_keys, of_v), of_sixteen)
    else:
        out = wg.product(A, Operand(block.own(of_v)))
    for flow, state in enumerate(of_states):
        of_flow = block.own(of_r), log_d, state
        add = functools.partial(_add_of_state, wg, block, of_flow, of_sixteen, flow)
        out = block.if_it_comes(flow, add, out)
    block.wait_for_all()
    y_ = block.own(of_r)
    tokens.write(wg, y_, out)
    block = block.again(anew=_FAR)
    block.write(block.part, (y_, y))
    block.wait_for_writes()


def _start(block: Block, states, of_states: Sequence, flows: range) -> None:
    """Begins to copy the states that come by flows, each to its room."""
    for flow in flows:
        state = block.state(states, flow, block.part + flow)
        room = block.own(of_states[flow])
        pl.when(block.comes(flow))(functools.partial(block.start_state, [(state, room)], flow))


def _add_of_state(
    wg: Warpgroup, block: Block, rooms, of_sixteen: Met, flow: int, out: Float[Array, "64 n"]
) -> Float[Array, "64 n"]:
    """out with what comes by a flow. rooms: r, log d, and the state."""
    r_, log_d, of_state = rooms
    mask = beside.to_edge(wg, of_sixteen(_NEAR + flow), 1 - flow, one=tile.ONE)
    r_decayed = tokens.load(wg, r_) * _decays(wg, log_d, mask)
    block.wait_for_state(flow)
    return wg.add_product(out, r_decayed, Operand(block.own(of_state)).T)


def _decays(
    wg: Warpgroup, log_d: Operand, mask: masks.Mask, *past: tuple[masks.Mask, Operand]
) -> BFloat16[Array, "64 n"]:
    """Products of a tile's decays that a mask marks, and of other tiles'; a half of the channels
    after the other, since registers are short.
    """
    halves = []
    for part in wg.halves:
        log_c = tile.log2_product(wg, mask, log_d.columns(*part))
        for other_mask, other in past:
            log_c = wg.add_product(log_c, tile.scaled(other_mask), other.columns(*part))
        halves.append(jnp.exp2(log_c).astype(BFLOAT16))
    return warp.joined(wg, halves)


def _levels_beyond_sixteen(
    wg: Warpgroup, block: Block, A: BFloat16[Array, "64 64"], rooms: Sequence, met: Met
) -> BFloat16[Array, "64 64"]:
    """A with what tokens of a tile say to others than their sixteen.

    rooms: r, k, log d, and one for decayed keys.
    """

    def level(bit, A):
        r_, k_, log_d, keys = block.own(rooms, anew=bit)
        mask = tile.scaled(masks.decays_to_midpoint(wg, met(bit), bit))
        c = _decays(wg, Operand(log_d), mask)
        wg.wait_for_readers()
        wg.store((Operand(keys), tokens.load(wg, k_) * c))
        scores = wg.product(tokens.load(wg, r_) * c, Operand(keys).T).astype(BFLOAT16)
        return A + masks.of_bfloat16(masks.meet(wg, met(bit + _NEAR), bit)) * scores

    return lax.fori_loop(warp.LEVELS, block.levels, level, A)


def _of_all_tiles(
    wg: Warpgroup, block: Block, A: BFloat16[Array, "64 64"], rooms: Sequence, of_sixteen: Met
) -> Float[Array, "64 n"]:
    """A v, and what the other tiles of the sequence say: one level or two more, whose halves are
    one tile or two.

    rooms: r, k, log d, one for decayed keys, and v.
    """
    index, tiles = block.index, wg.plan.tiles
    neighbour = index ^ 1

    def leave(left: Array, anew: int, *past: tuple[Array, Operand]) -> BFloat16[Array, "64 n"]:
        """The tile's r as they meet others; its keys for others to meet."""
        log_d = Operand(block.own(rooms[2], anew=anew))
        mask = beside.to_edge(wg, of_sixteen(anew), left, one=tile.ONE)
        c = _decays(wg, log_d, mask, *past)
        block.wait_for_all()  # until nobody reads the keys before these
        r_, k_, _, keys, _ = block.own(rooms, anew=anew)
        wg.write(Operand(keys), tokens.load(wg, k_) * c)
        r_decayed = tokens.load(wg, r_) * c
        block.wait_for_all()
        return r_decayed

    def add(out, other: Array, r_decayed: Array, anew: int | Array) -> Float[Array, "64 n"]:
        there = block.of(jnp.minimum(other, tiles - 1), rooms, anew=anew)
        keys, values = (Operand(x) for x in there[3:])
        A = wg.product(r_decayed, keys.T).astype(BFLOAT16)
        if tiles == 3:  # one of four is none
            A = A * jnp.where(other < tiles, 1, 0).astype(BFLOAT16)
        return wg.add_product(out, A, values)

    def of_own_tile() -> Float[Array, "64 n"]:
        return wg.product(A, Operand(block.own(rooms[4], anew=_NEAR)))

    # In the order in which 128 registers suffice.
    if tiles == 2:
        out = of_own_tile()
        return add(out, neighbour, leave(index, _NEAR), _NEAR)
    r_near = leave(index & 1, _NEAR)
    out = add(of_own_tile(), neighbour, r_near, _NEAR)
    # The outer two of four tiles have another one between them and the middle.
    outer = masks.everywhere(wg, (index == 0) | (index == 3))
    _, _, between, *_ = block.of(jnp.minimum(neighbour, tiles - 1), rooms, anew=_FAR)
    r_far = leave(index >> 1, _FAR, (outer, Operand(between)))
    first = 2 - (index & 2)
    # A loop, that the second one's scores wait for the first one's registers.
    return lax.fori_loop(0, 2, lambda i, out: add(out, first + i, r_far, i), out)
