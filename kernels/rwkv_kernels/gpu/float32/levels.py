"""What the 64 tokens of a tile say to one another, by levels: any decays, nothing divided."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, BFloat16, Float, Float16, Int

from rwkv_kernels.gpu import beside, masks, sixteens, tile, tokens, warp, words
from rwkv_kernels.gpu.plan import TILE
from rwkv_kernels.gpu.warpgroup import BFLOAT16, Warpgroup
from rwkv_kernels.gpu.words import Words

Met = Callable[[int | Array], masks.Mask]  # meetings of all tokens, for a part of the kernel
Scores = tuple[BFloat16[Array, "64 64"], BFloat16[Array, "64 64"]]  # high and low


class Tile(NamedTuple):
    """Tokens in shared memory.

    Attributes:
      r, k: as they came.
      log_d: in words; see `tile.log2_decay`.
    """

    r: tokens.Parts
    k: tokens.Parts
    log_d: Words


def decays(
    wg: Warpgroup, mask: Float16[Array, "64 64"], log_d: Words, first: int, count: int
) -> Float[Array, "64 count"]:
    """Of some channels, for each token (row of a mask) the product of those of tokens marked."""
    log_d = words.columns(log_d, first, count)
    (log_c,) = wg.sums_of_products(words.pairs([tile.scaled(mask)], log_d))
    return jnp.exp2(log_c)


def decayed(
    wg: Warpgroup, x: tokens.Parts, mask: Float16[Array, "64 64"], log_d: Words
) -> tuple[Array, ...]:
    """r or k as they came, times products of the decays that a mask marks; in words."""
    halves = []
    for part in wg.halves:
        product = tokens.between(wg, x, *part) * decays(wg, mask, log_d, *part)
        halves.append(words.split(wg, product, BFLOAT16))
    return tuple(warp.joined(wg, word) for word in zip(*halves, strict=True))


def scores(
    wg: Warpgroup, levels: int | Array, load: Callable[[int | Array], tuple[Tile, Words]], met: Met,
    with_itself: Float[Array, "64"],
) -> Scores:  # fmt: skip
    """A, with y = A v, of each token with all of the tile.

    levels: how many there are; load: tokens, and room for their keys, in a part of the kernel.
    """

    def level(bit: Int[Array, ""], A: Scores) -> Scores:
        of, keys = load(bit)
        mask = masks.decays_to_midpoint(wg, met(bit), bit)
        readers = []
        wg.wait_for_readers()
        for part in wg.halves:
            c = decays(wg, mask, of.log_d, *part)
            words.write(wg, words.columns(keys, *part), tokens.between(wg, of.k, *part) * c)
            readers.append(words.split(wg, tokens.between(wg, of.r, *part) * c, BFLOAT16))
        wg.store()
        of_readers = [warp.joined(wg, x) for x in zip(*readers, strict=True)]
        (found,) = wg.sums_of_products(words.pairs(of_readers, words.turned(keys)))
        meet = masks.of_bfloat16(masks.meet(wg, met(bit + TILE), bit))
        # Each token meets another at one level alone: nothing is added to what is there.
        high, low = (
            x + meet * new for x, new in zip(A, words.split(wg, found, BFLOAT16), strict=True)
        )
        return high, low

    on_diagonal = sixteens.on_diagonal(wg, with_itself)
    high, low = (beside.zeros(wg, x) for x in words.split(wg, on_diagonal, BFLOAT16))
    return lax.fori_loop(0, levels, level, (high, low))


def with_itself(wg: Warpgroup, r: tokens.Parts, k: tokens.Parts, u) -> Float[Array, "64"]:
    """r . u . k of each token, u [n] in main memory."""
    total = wg.zero_by_row()
    for part in wg.halves:
        of_r, of_k = (tokens.between(wg, x, *part) for x in (r, k))
        total = total + wg.sum_of_columns(of_r * wg.load_row(u.at[pl.ds(*part)]) * of_k)
    return total
