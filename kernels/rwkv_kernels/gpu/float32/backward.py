"""The backward kernel: gradients of r, k, v, w and u, a tile of a head in each block of the grid.

Scores come first, as in the forward kernel, and with them the gradient of v. Then half of a head's
channels after the other: all that comes to r, k and log d of some channels stays in registers, and
is written where r and k were once they are no longer wanted.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, BFloat16, Float, Float32, Int

from rwkv_kernels.gpu import masks, tile, tokens, warp, words
from rwkv_kernels.gpu.call import Block, kernel_call
from rwkv_kernels.gpu.float32 import levels
from rwkv_kernels.gpu.float32.flows import Part, add_of_log, of_values, through_flow
from rwkv_kernels.gpu.float32.rooms import MET, OF_V, Rooms, Work
from rwkv_kernels.gpu.flows import SAID, each
from rwkv_kernels.gpu.grid import Grid
from rwkv_kernels.gpu.plan import TILE, Plan
from rwkv_kernels.gpu.sums import Sums
from rwkv_kernels.gpu.warpgroup import BFLOAT16, FLOAT16, Warpgroup
from rwkv_kernels.gpu.words import Words

States = Sequence[BFloat16[Array, "flows B H borders N N"]]

# For `Block.own`: parts of the kernel; of those that are by halves, the first.
_VALUES, _LEVELS, _BONUS, _LAST = 210, 300, 600, 700


def backward(
    plan: Plan,
    r: Float32[Array, "B T C"],
    k: Float32[Array, "B T C"],
    v: Float32[Array, "B T C"],
    w: Float32[Array, "B T C"],
    u: Float32[Array, "H N"],
    g: Float32[Array, "B T C"],
    said: States | None,
    asked: States | None,
    *,
    interpret=None,
) -> dict[str, Array]:
    """dr, dk, dv and dw, and du by sequence and tile [B, tiles, C].

    g: the gradient of y. said: states of what comes from beyond each tile, in words; asked: the
    gradients of what goes on from it.
    """
    B, _, C = r.shape
    N = plan.head_size
    wg = Warpgroup(plan, N, interpret=interpret)
    came = wg.tokens(N, jnp.float32)
    widths = [count for _, count in wg.halves]

    def in_words(columns: int, rows: int = TILE, dtype=BFLOAT16) -> tuple:
        return plan.words * (wg.operand(columns, rows=rows, dtype=dtype),)

    held, square = in_words(N), in_words(TILE)
    states = (in_words(N, N), *(2 * (in_words(count, N),) for count in widths)) if said else ()
    rooms = Rooms(
        r=came, k=came, v=wg.in_turn(came, held), g=wg.in_turn(came, held),
        w=wg.in_turn(came, in_words(N, dtype=FLOAT16)),
        A=wg.in_turn(square, wg.tokens(widths[0], jnp.float32)), dA=square,
        D=wg.in_turn(square, in_words(widths[0])), work=wg.in_turn((held, held), came, *states),
        row=(wg.numbers(N),),
    )  # fmt: skip
    (high_said, low_said), (high_asked, low_asked) = said or (None, None), asked or (None, None)
    flows = None if said is None else jnp.full(1, said[0].shape[0], jnp.int32)
    inputs = {"r": r, "k": k, "v": v, "w": w, "u": u, "g": g, "flows": flows}
    inputs |= {"high_said": high_said, "low_said": low_said}
    inputs |= {"high_asked": high_asked, "low_asked": low_asked}
    inputs["meetings"] = masks.meetings(warp.SIXTEEN)[None]
    outputs = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype)
        for name, x in zip(("dr", "dk", "dv", "dw"), (r, k, v, w), strict=True)
    }
    outputs["du"] = jax.ShapeDtypeStruct((B, plan.tiles, C), jnp.float32)
    return kernel_call(
        functools.partial(_kernel, wg), wg, inputs, outputs, {"rooms": tuple(rooms)},
        grid=Grid(B, u.shape[0], plan.tiles), copies=5 * len(came), state_copies=plan.words,
        name="wkv6_float32_backward",
    )  # fmt: skip


def _kernel(
    wg: Warpgroup, block: Block, *, r, k, v, w, u, g, flows, meetings,
    high_said, low_said, high_asked, low_asked, dr, dk, dv, dw, du, rooms,
) -> None:  # fmt: skip
    of_ways = (high_said, low_said), (high_asked, low_asked)
    work = Work(wg, block, Rooms(*map(tuple, rooms)), meetings, *of_ways)
    at, i = work.at(0), block.part
    sources = ((r, at.r), (k, at.k), (v, at.v[0]), (g, at.g[0]), (w, at.w[0]))
    block.start([copy for x, to in sources for copy in block.tokens(x, i, to)])
    block.wait()
    of_v, of_g = (tokens.load(wg, x[0]) for x in (at.v, at.g))
    log2_d = tile.log2_decay(wg, at.w[0], block.tokens_in(i), jnp.float32)
    of_itself = wg.sum_of_columns(of_v * of_g)  # the gradient of r . u . k
    block.wait_for_all()
    for room, x in ((at.v, of_v), (at.g, of_g), (at.w, log2_d)):
        words.write(wg, words.operands(room[1]), x)
    wg.store()
    read_v, read_g = (words.operands(x[1]) for x in (at.v, at.g))
    (of_scores,) = wg.sums_of_products(words.pairs(read_g, words.turned(read_v)))
    words.write(wg, words.operands(at.dA), of_scores)
    _find_scores(work, u.at[block.head])
    _find_values(work, flows, dv)
    for n, part in enumerate(wg.halves):
        sums = _through_levels(work, part, n)
        sums = each(flows, functools.partial(through_flow, work, part, n), sums)
        sums = _with_bonus(work, part, of_itself, u.at[block.head], sums, _BONUS + n)
        rooms = work.at(_LAST + n)
        tokens.write(wg, rooms.r, sums.r, part[0])
        tokens.write(wg, rooms.k, sums.k, part[0])
        if n == 0:  # nobody reads the scores any more
            tokens.write(wg, rooms.A[1], sums.log_d)

    block = block.again(anew=_LAST)
    rooms = work.at(_LAST + len(wg.halves))
    logits = rooms.w[0]
    of_logs = tokens.load(wg, rooms.A[1]), sums.log_d
    block.write_to(du.at[block.batch, block.part], rooms.row, block.channel)
    block.write(block.part, (rooms.r, dr), (rooms.k, dk))
    # The logits once more: words of log d have few digits where decays are near 1.
    block.start_state(block.tokens(w, block.part, logits), SAID.number)
    block.wait_for_state(SAID.number)
    for (first, count), x in zip(wg.halves, of_logs, strict=True):
        of_logit = tile.of_logit(tokens.between(wg, logits, first, count))
        tokens.write(wg, logits, x * of_logit, first)
    block.write(block.part, (logits, dw))
    block.wait_for_writes()


def _find_scores(work: Work, u) -> None:
    """Leaves A in its room."""
    wg = work.wg

    def load(anew: int | Array) -> tuple[levels.Tile, Words]:
        _, keys = work.at(anew).work[MET]
        return work.tile(anew), words.operands(keys)

    at = work.at(0)
    itself = levels.with_itself(wg, at.r, at.k, u)
    A = levels.scores(wg, work.block.levels, load, work.met, itself)
    for operand, word in zip(words.operands(at.A[0]), A, strict=True):
        wg.write(operand, word)
    wg.store()


def _find_values(work: Work, flows, dv) -> None:
    """dv = A^T g, and what comes against flows."""
    wg, block = work.wg, work.block
    at = work.at(_VALUES)
    A, g = words.operands(at.A[0]), words.operands(at.g[1])
    of_parts = (words.pairs(words.turned(A), words.columns(g, *part)) for part in wg.halves)
    found = wg.sums_of_products(*of_parts)
    found = each(flows, functools.partial(of_values, work), found)
    wg.wait_for_readers()
    to = work.at(_VALUES + 9).work[OF_V]
    for (first, _), x in zip(wg.halves, found, strict=True):
        tokens.write(wg, to, x, first)
    block.write(block.part, (to, dv))
    block.wait_for_writes()


def _through_levels(work: Work, part: Part, n: int) -> Sums:
    """What a tile's tokens say to one another, of some channels."""
    wg = work.wg
    zeros = wg.zeros(part[1])

    def level(bit: Int[Array, ""], sums: Sums) -> Sums:
        anew = _LEVELS + 8 * n + bit
        rooms, of = work.at(anew), work.tile(anew)
        X, Y = (words.columns(words.operands(x), *part) for x in rooms.work[MET])
        dA, D = words.operands(rooms.dA), words.operands(rooms.D[0])
        r, k = (tokens.between(wg, x, *part) for x in (of.r, of.k))
        c = levels.decays(wg, masks.decays_to_midpoint(wg, work.met(anew), bit), of.log_d, *part)
        wg.wait_for_readers()
        words.write(wg, X, r * c)
        words.write(wg, Y, k * c)
        meet = masks.of_bfloat16(masks.meet(wg, work.met(anew + TILE), bit))
        for to, x in zip(D, dA, strict=True):
            wg.write(to, meet * wg.load_raw(x.ref))
        wg.store()
        of_r, of_k = wg.sums_of_products(words.pairs(D, Y), words.pairs(words.turned(D), X))
        of_r, of_k = of_r * c, of_k * c
        r, k = (tokens.between(wg, x, *part) for x in (of.r, of.k))
        sums = sums._replace(r=sums.r + of_r, k=sums.k + of_k)
        mask = masks.decays_to_midpoint(wg, work.met(anew + 2 * TILE), bit, transposed=True)
        return add_of_log(work, sums, mask, of_r * r + of_k * k, anew)

    return lax.fori_loop(0, work.block.levels, level, Sums(zeros, zeros, zeros))


def _with_bonus(
    work: Work, part: Part, of_itself: Float[Array, "64"], u, sums: Sums, anew: int
) -> Sums:
    """sums with what comes through r_t . u . k_t; leaves the gradient of u."""
    wg, at = work.wg, work.at(anew)
    r, k = (tokens.between(wg, x, *part) for x in (at.r, at.k))
    of = wg.spread(of_itself, 0, part[1])
    room = words.columns(words.operands(at.D[1]), 0, part[1])
    wg.wait_for_readers()
    words.write(wg, room, of * r * k)
    wg.store()
    (of_u,) = wg.sums_of_products(words.pairs([masks.of_bfloat16(masks.ones(wg))], room))
    at.row[0].at[pl.ds(*part)][...] = warp.first_row(wg, of_u)
    of = of * wg.load_row(u.at[pl.ds(*part)])
    return Sums(sums.r + of * k, sums.k + of * r, sums.log_d)
