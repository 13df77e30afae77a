"""Products of the decays of a tile's 64 tokens, and what each of them has with itself.

Decays are held as their logarithms to base 2, which a GPU's exponential is of, in float16, which
products sum: 11 bits, 8 times as good as bfloat16. Times 256, so that those of decays near 1 are
not among the smallest float16; beyond 2^-255 a decay is 0 in float32, whatever it is multiplied by.
A product of decays x has an error of at most x |log x| / 4096, less than the rounding of the
operand that it is multiplied into; if all are as small as exp(-20), 5e-3 of themselves.
"""

import math

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, BFloat16, Float, Float16

from rwkv_kernels.gpu import warp
from rwkv_kernels.gpu.plan import TILE
from rwkv_kernels.gpu.tokens import Parts
from rwkv_kernels.gpu.warpgroup import FLOAT16, Operand, Warpgroup

LOG2_E = math.log2(math.e)
LOG_SCALE = 256
ONE = 1 / LOG_SCALE  # in masks whose products with log d are logarithms to base 2
_LARGEST_LOG2 = 255  # of one over a decay
_LARGEST_LOGIT = math.log(_LARGEST_LOG2 / LOG2_E)


def log2_decay(wg: Warpgroup, w: Parts, count: Array, dtype=FLOAT16) -> Float[Array, "64 n"]:
    """256 log2 d of a tile of decay logits in shared memory, of which so many rows are tokens."""

    def of_part(logits: Float[Array, "64 m"]) -> Float[Array, "64 m"]:
        if wg.warpgroups > 2:
            # With four warpgroups' registers the last compiler would do products one by one if
            # pairs were bounded.
            logits = jnp.minimum(logits, _LARGEST_LOGIT)
        log2_d = -jnp.exp2(logits * LOG2_E + math.log2(LOG_SCALE * LOG2_E))
        if wg.plan.causal and wg.plan.last_rows < TILE:
            # The final state comes past what the last tile is filled up with, which must not decay
            # it.
            log2_d = jnp.where(wg.index(logits.shape[1], 0) < count, log2_d, 0.0)
        log2_d = log2_d.astype(dtype)
        if wg.warpgroups > 2:
            return log2_d
        return jnp.maximum(log2_d, jnp.asarray(-LOG_SCALE * _LARGEST_LOG2, dtype))

    # A part after the other, since registers are short.
    found = [of_part(wg.load_raw(part)) for part in w]
    return found[0] if len(found) == 1 else warp.joined(wg, found)


def of_logit(logits: Float[Array, "64 m"]) -> Float[Array, "64 m"]:
    """The gradient of log d: log d itself."""
    return -jnp.exp2(jnp.minimum(logits, _LARGEST_LOGIT) * LOG2_E)


def log2_product(
    wg: Warpgroup, mask: Float16[Array, "64 64"], log_d: Operand
) -> Float[Array, "64 n"]:
    """log2 of the product of the tokens' decays (columns) that a row of a mask has marked with
    `ONE`.
    """
    return wg.product(mask, log_d)


def scaled(mask: Float16[Array, "64 s"]) -> Float16[Array, "64 s"]:
    """A mask of zeros and ones with `ONE` for 1."""
    return mask * jnp.asarray(ONE, FLOAT16)


def product_of_decays(
    wg: Warpgroup, mask: Float16[Array, "64 64"], log_d: Operand
) -> Float[Array, "64 n"]:
    """For each token (row of a mask) that of the tokens (columns) marked with `ONE`.

    With `masks.decays_to_midpoint` c_m: of what lies strictly between each token and its block's
    midpoint. With `masks.decays_to_edge`: of all that lies beyond each one on one side.
    """
    return jnp.exp2(log2_product(wg, mask, log_d))


def with_itself(
    wg: Warpgroup, r: BFloat16[Array, "64 n"], k: BFloat16[Array, "64 n"], u
) -> Float[Array, "64"]:
    """r . u . k of each token, u [n] in main memory: in float32, since where a sequence is short
    there is little else, and the sum may nearly cancel.
    """
    return wg.sum_of_columns(wg.float32(r) * wg.load_row(u) * wg.float32(k))


def with_itself_in_turn(wg: Warpgroup, r: Parts, k: Parts, u, once: Array) -> Float[Array, "64"]:
    """As `with_itself`, of tokens as they came, sixteen channels after the other, since registers
    are short. once: 1, which the compiler does not know, or it would write the loop out.
    """
    total, start = wg.zero_by_row(), 0
    for of_r, of_k in zip(r, k, strict=True):

        def add(i, total, of_r=of_r, of_k=of_k, start=start):
            r, k = (
                wg.load_raw(x.at[:, pl.ds(warp.SIXTEEN * i, warp.SIXTEEN)]) for x in (of_r, of_k)
            )
            return total + with_itself(
                wg, r, k, u.at[pl.ds(start + warp.SIXTEEN * i, warp.SIXTEEN)]
            )

        width = of_r.shape[-1]
        total = lax.fori_loop(0, width // warp.SIXTEEN * once, add, total)
        start += width
    return total
