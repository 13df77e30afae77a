"""The WKV of a tile's 64 tokens among themselves: products of decays, and scores.

Log decays, and whatever else products of bfloat16 have to sum with more than bfloat16's precision,
are split into two bfloat16 parts, high and low: 16 bits, of which a 0/1 mask loses none.

A warpgroup has some of a head's channels, n of N. Decays are its own; scores sum over channels, so
each warpgroup has a summand of them.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from rwkv_kernels import reference
from rwkv_kernels.gpu import masks
from rwkv_kernels.gpu.warpgroup import Operand, Parts, Warpgroup, rounded, split


def where(mask: Array, x: Array) -> Parts:
    """x where the mask says so, else 0; bfloat16."""
    return (jnp.where(mask, x, jnp.zeros(x.shape, x.dtype)),)


def own_scores(
    wg: Warpgroup, x: Float[Array, "64 n"], u: Float[Array, "64 n"], other: Operand
) -> Parts:
    """r . u . k of each token with itself on the diagonal; symmetric in r and k.

    Where a sequence is short there is little else, and the sum over channels may nearly cancel: its
    terms keep 16 bits.
    """
    every = wg.product(split(x * u), other.T)
    return rounded(jnp.where(masks.same(wg), every, 0.0))


def log_decay(wg: Warpgroup, w, tokens: Array) -> Float[Array, "64 n"]:
    """log d of a tile of decay logits in shared memory; 0 from row `tokens` on: nothing decays."""
    rows = wg.index(w.shape[-1], 0)
    return jnp.where(rows < tokens, reference.log_decay(wg.load(w)), 0.0)


def product_of_decays(wg: Warpgroup, mask: Parts | Operand, log_d: Operand) -> Float[Array, "64 n"]:
    """For each token (row of a mask of zeros and ones) that of the tokens (columns) marked.

    With `masks.decays_to_midpoint` c_m: of what lies strictly between each token and its block's
    midpoint. With `masks.decays_to_edge`: of all that lies beyond each one on one side.
    """
    return jnp.exp(wg.product(mask, log_d))


def log_across(wg: Warpgroup, log_d: Operand) -> Float[Array, "64 n"]:
    """The log of the product of all of the tile's decays, in each row."""
    return wg.product((masks.rows_from(wg),), log_d)


def scores(wg: Warpgroup, r, k, u: Float[Array, "64 n"], log_d: Operand, keys: Operand) -> Parts:
    """A, with y = A v, of a tile's tokens among themselves, as far as it is this warpgroup's.

    r, k: the tile in shared memory; u: the bonus in each row; keys: an operand to work in.
    """
    keys.store(wg.load(k))
    A = own_scores(wg, wg.load(r), u, keys)

    def level(bit, A):
        m = 1 << bit
        c = product_of_decays(wg, (masks.decays_to_midpoint(wg, m),), log_d)
        keys.store(wg.load(k) * c)
        met = wg.product(rounded(wg.load(r) * c), keys.T)
        (before,), (now,) = A, rounded(met)
        return (jnp.where(masks.meet(wg, m), now, before),)

    return lax.fori_loop(0, wg.plan.levels, level, A)


def add_products(
    wg: Warpgroup, sums: list[Array] | None, pairs: list[tuple[Parts, Operand]]
) -> list[Array]:
    """sums + lhs @ rhs, a pair for each."""
    products = [wg.product(lhs, rhs) for lhs, rhs in pairs]
    return products if sums is None else [a + b for a, b in zip(sums, products, strict=True)]
