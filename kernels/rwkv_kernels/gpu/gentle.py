"""A tile whose decays are gentle: all of its tokens meet at once, in the place of six levels.

Levels never divide decays. Here they are divided, within bounds: let h_t be the sum of log decays
up to token t, half of its own included, less half of the whole tile's. What lies between s and a
later t is exp(h_t - log d_t / 2) exp(-h_s - log d_s / 2) = P_t Q_s, and between s and an earlier t
Q_t P_s. So r P meets k Q on one side of the diagonal, and r Q meets k P on the other: two masked
products. P and Q are at most the root of one over what a channel decays in the tile. While that is
no more than 2^58, nothing overflows, and r P in bfloat16 has as many digits as r c has at a level.

The gradient of a log decay is then a difference of sums over the tile, in which what has no part in
it cancels, since both are sums of the same products of rounded numbers. What they are held in, two
bfloat16 parts, leaves 2^-16 of it, times the log decay, where all that remains may be as small as
the decay. So no single decay may be strong either.

Tiles are asked while the kernel runs. Those that are not gentle take the levels, which hold for any
decays.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float, Float16, Int

from rwkv_kernels.gpu import beside, choose, masks, sixteens, tile, tokens, warp
from rwkv_kernels.gpu.call import Block
from rwkv_kernels.gpu.plan import TILE
from rwkv_kernels.gpu.rooms import Held, Rooms
from rwkv_kernels.gpu.sums import Sums
from rwkv_kernels.gpu.warpgroup import BFLOAT16, Operand, Warpgroup

# To base 2: the largest log of P and Q, whose tile decays by exp(-80), and the least log decay of a
# token, exp(-3).
MOST, LEAST = 58.0, -4.33

# For `Block.own`: parts of the kernel; of those that are by channels, the first.
_DECAY, _MEET, _LEFT, _GRADIENTS, _LOGS = 110, 120, 121, 130, 140


class Answer(NamedTuple):
    """What a tile has said of its decays.

    Attributes:
      gentle: 1 if they are, else 0; no compiler knows which.
      log_p: of P, to base 2, float32 [64, N].
      log_d: as it is held.
    """

    gentle: Int[Array, ""]
    log_p: Float[Array, "64 n"]
    log_d: Float16[Array, "64 n"]


def ask(wg: Warpgroup, tokens: Array, of_sixteen: masks.Mask, log_d: Operand) -> Answer:
    """Whether a tile is gentle, the same to all of a warpgroup's threads, who wait for each other.

    One of no more tokens than a warp holds says that it is not: it takes fewer instructions by
    levels. tokens: how many there are; of_sixteen: meetings of each token's sixteen
    (`masks.meetings`); log_d: see `tile.log2_decay`.
    """
    log_p = tile.log2_product(wg, tile.scaled(_from_middle(wg, of_sixteen)), log_d)
    held = wg.load_raw(log_d.ref)
    # The first token's is the largest, and about as large as the last one's log of Q.
    many = (tokens > warp.SIXTEEN).astype(jnp.int32)
    return Answer(choose.within(wg, log_p, MOST, held, LEAST * tile.LOG_SCALE, many), log_p, held)


def scores(
    wg: Warpgroup, block: Block, rooms: Sequence, bits, answer: Answer
) -> BFloat16[Array, "64 64"]:
    """A of each token with all others, with y = A v; with itself 0.

    rooms: r and k as they came, log d, and one for decayed keys, that nobody reads; bits:
    `masks.bits` of each token's sixteen, in main memory.
    """

    def decay(i: int, part: tuple[int, int]) -> tuple[Array, ...]:
        of_r, of_k, _, keys = block.own(rooms, anew=_DECAY + i)
        P, Q = _factors(*(warp.columns(wg, x, *part) for x in (answer.log_p, answer.log_d)))
        r, k = (wg.float32(tokens.columns(wg, x, *part)) for x in (of_r, of_k))
        wg.write(Operand(keys).columns(*part), k * Q)
        return tuple(x.astype(BFLOAT16) for x in (r * P, r * Q, k * P))

    found = []
    for i, part in enumerate(wg.thirds):
        nothing = 3 * (choose.anything(wg, part[1], BFLOAT16),)
        work = functools.partial(decay, i, part)
        found.append(choose.apart(answer.gentle, i, work, *nothing))
    r_right, r_left, k_left = (warp.joined(wg, x) for x in zip(*found, strict=True))
    wg.store()
    *_, keys = block.own(rooms, anew=_MEET)
    to_right = wg.product(r_right, Operand(keys).T).astype(BFLOAT16)
    A = choose.where(wg, _bits(wg, block, bits, 0), to_right)
    if wg.plan.causal:
        return A
    wg.wait_for_readers()
    *_, keys = block.own(rooms, anew=_LEFT)
    wg.store((Operand(keys), k_left))
    to_left = wg.product(r_left, Operand(keys).T).astype(BFLOAT16)
    return choose.where(wg, _bits(wg, block, bits, 1), to_left, A)


def gradients(
    wg: Warpgroup, block: Block, of_held: Held, of_rooms: Rooms, with_itself: Float[Array, "64"],
    of_sixteen: Callable[[int], masks.Mask], bits, answer: Answer,
) -> list[Sums]:  # fmt: skip
    """What comes through the scores, by halves of the channels. Leaves the scores in the room of A.

    with_itself: r_t . u . k_t; of_sixteen: gives meetings of each token's sixteen; bits: see
    `scores`.
    """
    for i, part in enumerate(wg.thirds):
        log_p, log_d = (warp.columns(wg, x, *part) for x in (answer.log_p, answer.log_d))
        decay = functools.partial(_decay, wg, block, of_held, of_rooms, part, log_p, log_d, i)
        choose.apart(answer.gentle, i, decay)
    wg.store()
    # In registers until nobody reads r Q any more, of which there may be some in its room.
    A = _meet(wg, block, of_held, of_rooms, bits)
    A = A + beside.zeros(wg, sixteens.on_diagonal(wg, with_itself).astype(BFLOAT16))
    wg.store()

    found, of_logs = [], []
    for i, part in enumerate(wg.thirds):
        x, y = (choose.anything(wg, part[1], dtype) for dtype in (jnp.float32, BFLOAT16))
        log_p = warp.columns(wg, answer.log_p, *part)
        work = functools.partial(_of_part, wg, block, of_held, of_rooms, part, log_p, i)
        *of_tokens, high, low = choose.apart(answer.gentle, i, work, x, x, x, y, y)
        found.append(Sums(*of_tokens))
        of_logs.append((high, low))
    sums = Sums(*(warp.joined(wg, x) for x in zip(*found, strict=True)))
    high, low = (warp.joined(wg, x) for x in zip(*of_logs, strict=True))
    wg.wait_for_readers()
    of_A, rooms = block.own((of_held.A, of_rooms), anew=_LOGS)
    X, _, E, *_ = rooms.operands()
    wg.store((Operand(of_A), A), (E, high), (X, low))
    mask = masks.halves_of_bfloat16(_from_middle(wg, of_sixteen(_LOGS)))
    rests = ((mask, E.columns(*part), X.columns(*part)) for part in wg.halves)
    new = []
    for part, rest in zip(wg.halves, wg.products(*rests), strict=True):
        r, k, log_d = (warp.columns(wg, x, *part) for x in sums)
        # Nothing lies beyond the first token, or the last: theirs is 0, and not what is left of it.
        row = wg.index(part[1], 0)
        between = (row > 0) & (row < block.tokens_in(block.part) - 1)
        new.append(Sums(r, k, jnp.where(between, log_d + rest, 0.0)))
    return new


def _decay(
    wg: Warpgroup, block: Block, of_held: Held, of_rooms: Rooms, part: tuple[int, int],
    log_p: Float[Array, "64 n"], log_d: Float16[Array, "64 n"], i: int,
) -> tuple[()]:  # fmt: skip
    """Leaves r and k times P and Q, of some channels."""
    held = block.own(of_held, anew=_DECAY + i).operands()
    X, Y, E, _, Z = block.own(of_rooms, anew=_DECAY + i).operands()
    P, Q = _factors(log_p, log_d)
    r, k = (wg.load(x.columns(*part).ref) for x in (held.r, held.k))
    wg.write(X.columns(*part), k * Q)
    wg.write(E.columns(*part), r * P)
    if not wg.plan.causal:
        wg.write(Y.columns(*part), k * P)
        wg.write(_left(Z, held.A, part), r * Q)
    return ()


def _meet(
    wg: Warpgroup, block: Block, of_held: Held, of_rooms: Rooms, bits
) -> BFloat16[Array, "64 64"]:
    """Scores, with 0 on the diagonal; leaves their gradients in rooms for either side."""
    held = block.own(of_held, anew=_MEET).operands()
    v, g, A, dA = held.v, held.g, held.A, held.dA
    X, Y, E, D, Z = block.own(of_rooms, anew=_MEET).operands()
    of_sides = [[(E, X.T)], [(g, v.T)]]
    if not wg.plan.causal:
        rooms = [(0, TILE), (TILE, wg.width - TILE)] if wg.width > TILE else [(0, TILE)]
        of_sides.append([(_left(Z, A, part), Y.columns(*part).T) for part in rooms])
    to_right, of_scores, *to_left = wg.sums_of_products(*of_sides)
    of_scores = of_scores.astype(BFLOAT16)
    earlier = _bits(wg, block, bits, 0)
    found = choose.where(wg, earlier, to_right.astype(BFLOAT16))
    wg.write(D, choose.where(wg, earlier, of_scores))
    for left in to_left:
        later = _bits(wg, block, bits, 1)
        wg.write(dA, choose.where(wg, later, of_scores))
        found = choose.where(wg, later, left.astype(BFLOAT16), found)
    return found


def _of_part(
    wg: Warpgroup, block: Block, of_held: Held, of_rooms: Rooms, part: tuple[int, int],
    log_p: Float[Array, "64 n"], i: int,
) -> tuple[Array, ...]:  # fmt: skip
    """Sums of some channels, and two parts of what is still to be summed over tokens for log d.

    With E and F the gradients of P and Q times them: that of log d_j is half of the sum of E - F
    after j, less half of that before j, less half of E_j + F_j. The last is half of E_j - F_j less
    E_j, and the first of these is summed up with the others.
    """
    held = block.own(of_held, anew=_GRADIENTS + i).operands()
    of_log_d, A, dA = held.log_d, held.A, held.dA
    X, Y, E, D, Z = block.own(of_rooms, anew=_GRADIENTS + i).operands()
    P, Q = _factors(log_p, wg.load_raw(of_log_d.columns(*part).ref))
    # Of each way: gradients of scores, what r and k are there, and what gradients are theirs by.
    ways = [(D, E.columns(*part), X.columns(*part), P, Q)]
    if not wg.plan.causal:
        ways.append((dA, _left(Z, A, part), Y.columns(*part), Q, P))
    products = ([(of, keys), (of.T, readers)] for of, readers, keys, *_ in ways)
    of_both = iter(wg.products(*itertools.chain.from_iterable(products)))
    new = []
    for _, readers, keys, to_r, to_k in ways:
        of_r, of_k = next(of_both), next(of_both)
        by_r, by_k = of_r * wg.load(readers.ref), of_k * wg.load(keys.ref)
        new.append((of_r * to_r, of_k * to_k, by_r, by_k))
    if wg.plan.causal:
        ((*sums, E, F),) = new
    else:  # r meets Q on the other side, and k meets P
        (*earlier, E, F), (*later, of_Q, of_P) = new
        sums, E, F = list(map(jnp.add, earlier, later)), E + of_P, F + of_Q
    return *sums, -E, *wg.split(F - E)


def _left(Z: Operand, A: Operand, part: tuple[int, int]) -> Operand:
    """Where r Q is, of some channels."""
    first, count = part
    return Z.columns(*part) if first < TILE else A.columns(first - TILE, count)


def _factors(log_p: Array, log_d: Float16[Array, "64 n"]) -> tuple[Array, Array]:
    """P and Q, float32 [64, n]. P Q d = 1."""
    log_d = log_d.astype(jnp.float32) * (1 / tile.LOG_SCALE)
    return jnp.exp2(log_p), jnp.exp2(-log_p - log_d)


def _from_middle(wg: Warpgroup, of_sixteen: masks.Mask) -> Float16[Array, "64 64"]:
    """`masks.from_middle` of all tokens."""
    return beside.halves(wg, masks.from_middle(of_sixteen))


def _bits(wg: Warpgroup, block: Block, bits, later: int) -> Float16[Array, "64 64"]:
    """`masks.bits` of all tokens, for earlier or later ones."""
    own = wg.load_raw(block.only(bits.at[later : later + 1], anew=_MEET + later))
    return beside.bits(wg, own, earlier=not later)
