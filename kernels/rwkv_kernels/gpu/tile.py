"""The WKV of a tile's 64 tokens among themselves: products of decays, and scores.

Log decays, and whatever else products of bfloat16 have to sum with more than bfloat16's precision,
are split into two bfloat16 parts, high and low: 16 bits, of which a 0/1 mask loses none.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from rwkv_kernels import reference
from rwkv_kernels.gpu import masks
from rwkv_kernels.gpu.warpgroup import BFLOAT16, Transposed, Warpgroup


@dataclasses.dataclass(frozen=True)
class Split:
    """A float32 tile [64, N] in shared memory, as the sum of two bfloat16 operands."""

    high: Any
    low: Any

    def store(self, x: Float[Array, "64 N"]) -> None:
        self.high[...], self.low[...] = split(x)
        plgpu.commit_smem()

    def load(self, wg: Warpgroup) -> Float[Array, "64 N"]:
        return wg.load(self.high) + wg.load(self.low)

    def summed_by(self, wg: Warpgroup, mask: Array) -> Float[Array, "64 N"]:
        """mask @ x, for a mask of zeros and ones."""
        return wg.product((mask, self.high), (mask, self.low))


def split(x: Float[Array, "64 N"]) -> tuple[Array, Array]:
    """High and low part, bfloat16."""
    high = x.astype(BFLOAT16)
    return high, (x - high.astype(jnp.float32)).astype(BFLOAT16)


def own_scores(
    wg: Warpgroup, x: Float[Array, "64 N"], u: Float[Array, "64 N"], other
) -> Float[Array, "64 64"]:
    """r . u . k of each token with itself on the diagonal, in bfloat16; symmetric in r and k.

    Where a sequence is short there is little else, and the sum over channels may nearly cancel: its
    terms keep 16 bits.
    """
    every = wg.product(*((part, Transposed(other)) for part in split(x * u)))
    return jnp.where(masks.same(wg), every, 0.0).astype(BFLOAT16)


def log_decay(wg: Warpgroup, w, tokens: Array) -> Float[Array, "64 N"]:
    """log d of a tile of decay logits in shared memory; 0 from row `tokens` on: nothing decays."""
    return jnp.where(wg.rows() < tokens, reference.log_decay(wg.load(w)), 0.0)


def to_midpoint(wg: Warpgroup, log_d: Split, m: Array) -> Float[Array, "64 N"]:
    """c_m: the product of the decays strictly between each token and its block's midpoint."""
    return jnp.exp(log_d.summed_by(wg, masks.decays_to_midpoint(wg, m)))


def to_edge(wg: Warpgroup, log_d: Split, *, left: bool) -> Float[Array, "64 N"]:
    """The product of the decays of all tokens of the tile that lie beyond each one, on one side."""
    return jnp.exp(log_d.summed_by(wg, masks.decays_to_edge(wg, left=left)))


def across(wg: Warpgroup, log_d: Split) -> Float[Array, "64 N"]:
    """The product of all of the tile's decays, in each row."""
    return jnp.exp(log_d.summed_by(wg, masks.rows_from(wg)))


def put(operand, x: Float[Array, "64 N"]) -> Array:
    """Rounds a tile to an operand of products, in shared memory and in registers."""
    rounded = x.astype(BFLOAT16)
    operand[...] = rounded
    plgpu.commit_smem()
    return rounded


def scores(
    wg: Warpgroup, r, k, u: Float[Array, "64 N"], log_d: Split, keys
) -> Float[Array, "64 64"]:
    """A, with y = A v, of a tile's tokens among themselves; bfloat16.

    r, k: the tile in shared memory; u: the bonus in each row; keys: an operand to work in.
    """
    put(keys, wg.load(k))
    A = own_scores(wg, wg.load(r), u, keys)

    def level(bit, A):
        m = 1 << bit
        c = to_midpoint(wg, log_d, m)
        put(keys, wg.load(k) * c)
        met = wg.product(((wg.load(r) * c).astype(BFLOAT16), Transposed(keys)))
        return jnp.where(masks.meet(wg, m), met.astype(BFLOAT16), A)

    return lax.fori_loop(0, wg.plan.levels, level, A)
