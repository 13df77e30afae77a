"""The WKV inside one chunk: every pair of tokens once, as masked matrix products, and its gradient.

What is unusual: decays that lie between two tokens are split at a midpoint, so both operands of
every product carry factors of at most 1, both directions share them, and no pair is computed
element by element. With c the factors of a level (see `decay_products.py`) and M its pairs,

  A = diag(r . u . k) + sum_levels M o ((r c)(k c)^T),    y = A v.

The gradient is analytic and needs the inputs alone: with g that of y, D = M o (g v^T),
dX = (D (k c)) c and dY = (D^T (r c)) c, a level adds dX to dr, dY to dk, and r dX + k dY to the
gradient of the logarithms of its factors.

The tree has two tiers, to keep arrays and products small: levels inside tiles of at most 20 steps,
then levels over the tiles of the chunk.

Arrays are [G, C, N]: G sequences (one batch element and head each), C = tiles * tile steps, N
channels; or [Z, L, N] a tile, Z = G * tiles. All are in the accumulation dtype.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from rwkv_kernels import decay_products


@dataclasses.dataclass(frozen=True)
class Chunk:
    """The static shape of a chunk, and how its products are taken.

    Attributes:
      tiles: how many tiles a chunk has.
      tile: steps of a tile.
      causal: whether a token sees only those before it (and itself).
      operand_dtype: what both operands of a matrix product are rounded to; None leaves them.
    """

    tiles: int
    tile: int
    causal: bool
    operand_dtype: str | None = None

    def __post_init__(self):
        if self.tiles < 1 or self.tile < 1:
            raise ValueError(f"Chunk: tiles {self.tiles} and tile {self.tile} must be at least 1.")

    @property
    def steps(self) -> int:
        return self.tiles * self.tile

    def dot(self, spec: str, a: Array, b: Array) -> Array:
        """A product that accumulates in the operands' dtype, float32 or float64.

        Float32 operands ask for the highest precision: a GPU's TF32 would keep 10 bits of them, and
        a TPU's default 8. Nothing is lost on a CPU, which knows no other.
        """
        dtype = a.dtype
        if self.operand_dtype is not None:
            a, b = a.astype(self.operand_dtype), b.astype(self.operand_dtype)
            return jnp.einsum(spec, a, b, preferred_element_type=dtype)
        return jnp.einsum(spec, a, b, precision=jax.lax.Precision.HIGHEST)

    @functools.cached_property
    def tile_masks(self) -> list[Bool[np.ndarray, "L L"]]:
        masks = decay_products.pairs(self.tile)
        return [np.tril(mask) for mask in masks] if self.causal else masks

    @functools.cached_property
    def cross_masks(self) -> list[Bool[np.ndarray, "C C"]]:
        whole = np.ones((self.tile, self.tile), bool)
        masks = [np.kron(mask, whole) for mask in decay_products.pairs(self.tiles)]
        return [np.tril(mask) for mask in masks] if self.causal else masks


@dataclasses.dataclass(frozen=True)
class Edges:
    """The products of decays to a chunk's edges, or the gradients of their logarithms."""

    before: Float[Array, "G C N"]  # from the left edge to a token
    after: Float[Array, "G C N"]  # from a token to the right edge
    total: Float[Array, "G N"]  # across the chunk


@dataclasses.dataclass(frozen=True)
class Factors:
    """The products of decays inside a chunk, or the gradients of their logarithms: one a level."""

    tile: list[Float[Array, "Z L N"]]  # to the midpoint, inside a tile
    cross: list[Float[Array, "G C N"]]  # to the midpoint, over tiles


def decay_factors(chunk: Chunk, decay: Float[Array, "G C N"]) -> Factors:
    """What the products inside the chunk carry."""
    tiled = decay.reshape(-1, chunk.tile, decay.shape[-1])  # [Z, L, N]
    tile = decay_products.to_midpoint(tiled)
    if chunk.tiles == 1:
        return Factors(tile, [])
    before, after, total = decay_products.to_edges(tiled)
    between = decay_products.to_midpoint(_of_tiles(chunk, total))
    cross = [
        (jnp.where(side, before, after) * _to_steps(tiles)).reshape(decay.shape)
        for side, tiles in zip(_right_tiles(chunk, tiled), between, strict=True)
    ]
    return Factors(tile, cross)


def edge_factors(chunk: Chunk, decay: Float[Array, "G C N"]) -> Edges:
    """What carries states into and out of the chunk."""
    before, after, total = decay_products.to_edges(
        decay.reshape(-1, chunk.tile, decay.shape[-1])  # [Z, L, N]
    )
    if chunk.tiles > 1:
        left, right, total = decay_products.to_edges(_of_tiles(chunk, total))
        before, after = before * _to_steps(left), after * _to_steps(right)
    return Edges(before.reshape(decay.shape), after.reshape(decay.shape), total)


def log_decay_gradient(
    chunk: Chunk, decay: Float[Array, "G C N"], dlog: Factors, dedges: Edges | None = None
) -> Float[Array, "G C N"]:
    """The gradient of each decay's logarithm: the transpose of the two functions above."""
    tiled = decay.reshape(-1, chunk.tile, decay.shape[-1])  # [Z, L, N]
    cross = [x.reshape(tiled.shape) for x in dlog.cross]
    sides = _right_tiles(chunk, tiled)
    before = [jnp.where(side, x, 0) for side, x in zip(sides, cross, strict=True)]
    after = [jnp.where(side, 0, x) for side, x in zip(sides, cross, strict=True)]
    to_edges = () if dedges is None else (dedges.before, dedges.after)
    edges = [x.reshape(tiled.shape) for x in to_edges]
    before, after = before + edges[:1], after + edges[1:]
    gradient = decay_products.log_decay_gradient(tiled, dlog.tile, before, after)
    if chunk.tiles > 1:  # what lies between whole tiles
        sums = [_of_tiles(chunk, jnp.sum(x, axis=1)) for x in cross + edges]  # [G, tiles, N]
        levels, left, right = sums[: len(cross)], sums[len(cross) :][:1], sums[len(cross) :][1:]
        whole = decay_products.log_decay_gradient(sums[0], levels, left, right)
        gradient = gradient + _to_steps(whole)
    gradient = gradient.reshape(decay.shape)
    return gradient if dedges is None else gradient + dedges.total[:, None]


def _of_tiles(chunk: Chunk, x: Float[Array, "Z N"]) -> Float[Array, "G tiles N"]:
    return x.reshape(-1, chunk.tiles, x.shape[-1])


def _to_steps(x: Float[Array, "G tiles N"]) -> Float[Array, "Z 1 N"]:
    return x.reshape(-1, 1, x.shape[-1])


def _right_tiles(chunk: Chunk, tiled: Float[Array, "Z L N"]) -> list[Bool[Array, "Z 1 1"]]:
    """A level over tiles each: whether a tile lies on the right of its midpoint."""
    G = tiled.shape[0] // chunk.tiles
    sides = decay_products.right_of_midpoint(chunk.tiles)
    return [jnp.asarray(np.tile(side, G))[:, None, None] for side in sides]


def output(
    chunk: Chunk,
    r: Float[Array, "G C N"],
    k: Float[Array, "G C N"],
    v: Float[Array, "G C N"],
    bonus: Float[Array, "G 1 N"],
    factors: Factors,
) -> Float[Array, "G C N"]:
    """y = A v, of the tokens of this chunk alone."""
    y = jnp.sum(r * bonus * k, axis=-1, keepdims=True) * v
    for masks, levels in _tiers(chunk, factors):
        if not levels:
            continue
        r_, k_, v_ = (_fold(x, levels[0].shape) for x in (r, k, v))  # [Z, L, N] or [G, C, N]
        A = _scores(chunk, r_, k_, masks, levels)
        y = y + chunk.dot("zts,zsn->ztn", A, v_).reshape(y.shape)
    return y


def output_gradient(
    chunk: Chunk,
    r: Float[Array, "G C N"],
    k: Float[Array, "G C N"],
    v: Float[Array, "G C N"],
    bonus: Float[Array, "G 1 N"],
    factors: Factors,
    g: Float[Array, "G C N"],
) -> tuple[Array, Array, Array, Float[Array, "G N"], Factors]:
    """Gradients of r, k, v, the bonus, and the logarithms of the factors, from that of y, g."""
    diagonal = jnp.sum(g * v, axis=-1, keepdims=True)  # of dA
    dr = diagonal * bonus * k
    dk = diagonal * bonus * r
    dv = jnp.sum(r * bonus * k, axis=-1, keepdims=True) * g
    dbonus = jnp.sum(diagonal * r * k, axis=1)
    dlog: list[list[Array]] = []
    for masks, levels in _tiers(chunk, factors):
        dlog.append([])
        if not levels:
            continue
        r_, k_, v_, g_ = (_fold(x, levels[0].shape) for x in (r, k, v, g))
        # A and dA are computed transposed, not turned: on a CPU XLA's fast products contract the
        # last axis of the left operand, and its others take up to three times as long.
        At = _scores(chunk, k_, r_, [mask.T for mask in masks], levels)
        dv = dv + chunk.dot("zst,ztn->zsn", At, g_).reshape(dv.shape)
        dA, dAt = chunk.dot("ztn,zsn->zts", g_, v_), chunk.dot("zsn,ztn->zst", v_, g_)
        for mask, c in zip(masks, levels, strict=True):
            dX = chunk.dot("zts,zsn->ztn", jnp.where(mask, dA, 0), k_ * c) * c
            dY = chunk.dot("zst,ztn->zsn", jnp.where(mask.T, dAt, 0), r_ * c) * c
            dr = dr + dX.reshape(dr.shape)
            dk = dk + dY.reshape(dk.shape)
            dlog[-1].append(r_ * dX + k_ * dY)
    return dr, dk, dv, dbonus, Factors(tile=dlog[0], cross=dlog[1])


def _tiers(chunk: Chunk, factors: Factors):
    """(masks, factors): inside tiles, then over the tiles of the chunk."""
    return (chunk.tile_masks, factors.tile), (chunk.cross_masks, factors.cross)


def _fold(x: Array, shape: tuple[int, ...]) -> Array:
    return x.reshape(shape)  # [G, C, N] -> [Z, L, N], or as it is


def _scores(chunk: Chunk, r, k, masks, levels):
    """A without its diagonal: the sum over levels of M o ((r c)(k c)^T); of k and r, A^T."""
    return sum(
        jnp.where(mask, chunk.dot("ztn,zsn->zts", r * c, k * c), 0)
        for mask, c in zip(masks, levels, strict=True)
    )
