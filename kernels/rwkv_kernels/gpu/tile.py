"""The WKV of a tile's 64 tokens among themselves: products of decays, and scores.

Decays are held as their logarithms to base 2, which a GPU's exponential is of, in bfloat16, which
products multiply: of a product of decays x that is an error of at most x |log x| / 512, less than
the rounding of the operand that x is multiplied into.
"""

import functools
import math

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, BFloat16, Float

from rwkv_kernels import reference
from rwkv_kernels.gpu import masks
from rwkv_kernels.gpu.plan import TILE
from rwkv_kernels.gpu.warpgroup import BFLOAT16, Operand, Warpgroup

LOG2_E = math.log2(math.e)


def log2_decay(wg: Warpgroup, w, tokens: Array) -> Float[Array, "64 n"]:
    """log2 d of a tile of decay logits in shared memory."""
    logits = jnp.minimum(wg.load(w), reference.LARGEST_LOGIT)
    log2_d = -jnp.exp2(logits * LOG2_E + math.log2(LOG2_E))
    if not wg.plan.causal or wg.plan.last_rows == TILE:
        return log2_d
    # The final state comes past what the last tile is filled up with, which must not decay it.
    return jnp.where(wg.index(w.shape[-1], 0) < tokens, log2_d, 0.0)


def product_of_decays(
    wg: Warpgroup, mask: BFloat16[Array, "64 64"], log_d: Operand
) -> BFloat16[Array, "64 n"]:
    """For each token (row of a mask of zeros and ones) that of the tokens (columns) marked.

    With `masks.decays_to_midpoint` c_m: of what lies strictly between each token and its block's
    midpoint. With `masks.decays_to_edge`: of all that lies beyond each one on one side.
    """
    return jnp.exp2(wg.product(mask, log_d)).astype(BFLOAT16)


def with_itself(wg: Warpgroup, r: Operand, k: Operand, u) -> Float[Array, "64"]:
    """r . u . k of each token, u [n] in main memory: in float32, since where a sequence is short
    there is little else, and the sum may nearly cancel.
    """
    sums = []
    for part in wg.halves:
        at_r, at_k = (wg.load(x.columns(*part).ref) for x in (r, k))
        sums.append(wg.sum_of_columns(at_r * wg.load_row(u.at[pl.ds(*part)]) * at_k))
    return functools.reduce(jnp.add, sums)


def scores(
    wg: Warpgroup,
    r: Operand,
    k: Operand,
    log_d: Operand,
    keys: Operand,
    meetings: BFloat16[Array, "64 64"],
    levels: int | Array,
) -> BFloat16[Array, "64 64"]:
    """A, with y = A v, of a tile's tokens among themselves but for each with itself.

    keys: an operand to work in; levels: how many there are.
    """

    def level(bit, A):
        c = product_of_decays(wg, masks.decays_to_midpoint(wg, meetings, bit), log_d)
        wg.wait_for_readers()
        wg.store((keys, wg.load_raw(k.ref) * c))
        met = wg.product(wg.load_raw(r.ref) * c, keys.T).astype(BFLOAT16)
        return A + masks.meet(wg, meetings, bit) * met

    # At the first level nothing lies between.
    met = wg.product(r, k.T).astype(BFLOAT16)
    A = masks.meet(wg, meetings, jnp.int32(0)) * met
    return lax.fori_loop(1, levels, level, A)
