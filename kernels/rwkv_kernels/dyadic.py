"""The WKV inside one chunk: every pair of tokens once, as masked matrix products, and its gradient.

What is unusual: decays that lie between two tokens are split at a midpoint, so both operands of
every product carry factors of at most 1, both directions share them, and no pair is computed element
by element. With c the factors of a level (see `decay_products.py`) and M its pairs,

  A = diag(r . u . k) + sum_levels M o ((r c)(k c)^T),    y = A v.

The gradient is analytic and needs the inputs alone: with g that of y, D = M o (g v^T),
dX = (D (k c)) c and dY = (D^T (r c)) c, a level adds dX to dr, dY to dk, and r dX + k dY to the
gradient of the logarithms of its factors.

The tree has two tiers, to keep arrays and products small: levels inside tiles of at most 16 steps,
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
class Factors:
    """The products of decays that a chunk's matrix products carry, or their gradients.

    Gradients are those of the logarithms.
    """

    tile: list[Float[Array, "Z L N"]]  # a level each: to the midpoint, inside a tile
    cross: list[Float[Array, "G C N"]]  # a level each: to the midpoint, over tiles
    before: Float[Array, "G C N"] | None = None  # to the chunk's left edge
    after: Float[Array, "G C N"] | None = None  # to its right edge
    total: Float[Array, "G N"] | None = None  # across the chunk


def decay_factors(chunk: Chunk, decay: Float[Array, "G C N"], *, edges: bool) -> Factors:
    """All products of a chunk's decays; those to its edges only where states will need them."""
    G, C, N = decay.shape
    tiled = decay.reshape(-1, chunk.tile, N)  # [Z, L, N]
    tile = decay_products.to_midpoint(tiled)
    if chunk.tiles == 1 and not edges:
        return Factors(tile, [])
    before, after, total = decay_products.to_edges(tiled)
    totals = total.reshape(G, chunk.tiles, N)

    def widen(right, over_tiles):  # a tile's own part, times that of the tiles between
        side = jnp.asarray(np.tile(right, G))[:, None, None]  # [Z, 1, 1]
        return (jnp.where(side, before, after) * over_tiles.reshape(-1, 1, N)).reshape(G, C, N)

    cross = [
        widen(right, factor)
        for right, factor in zip(
            decay_products.right_of_midpoint(chunk.tiles),
            decay_products.to_midpoint(totals),
            strict=True,
        )
    ]
    if not edges:
        return Factors(tile, cross)
    tiles_before, tiles_after, whole = decay_products.to_edges(totals)
    everywhere = np.ones(chunk.tiles, bool)
    to_left, to_right = widen(everywhere, tiles_before), widen(~everywhere, tiles_after)
    return Factors(tile, cross, to_left, to_right, whole)


def edge_factors(chunk: Chunk, decay: Float[Array, "G C N"]) -> Factors:
    """Only the products to the chunk's edges, for the passes that carry states alone."""
    levels_unused = decay_factors(chunk, decay, edges=True)
    return dataclasses.replace(levels_unused, tile=[], cross=[])


def decay_factors_gradient(chunk: Chunk, dlog: Factors, shape) -> Float[Array, "G C N"]:
    """The gradient of the logarithm of each decay, from those of its products' logarithms."""
    G, _, N = shape
    wide = list(dlog.cross)
    right = decay_products.right_of_midpoint(chunk.tiles)
    edges = dlog.total is not None
    if edges:
        wide += [dlog.before, dlog.after]
        right += [np.ones(chunk.tiles, bool), np.zeros(chunk.tiles, bool)]
    if not wide:  # a single tile, no states
        if not dlog.tile:  # a single token
            return jnp.zeros(shape)
        return decay_products.log_decay_gradient(dlog.tile).reshape(shape)

    tiled = [x.reshape(-1, chunk.tile, N) for x in wide]  # [Z, L, N]
    sides = [jnp.asarray(np.tile(side, G))[:, None, None] for side in right]  # [Z, 1, 1]
    before = sum(jnp.where(side, x, 0) for side, x in zip(sides, tiled, strict=True))
    after = sum(jnp.where(side, 0, x) for side, x in zip(sides, tiled, strict=True))
    inside = decay_products.log_decay_gradient(dlog.tile, before, after)  # [Z, L, N]

    totals = [jnp.sum(x, axis=1).reshape(G, chunk.tiles, N) for x in tiled]
    if edges:
        over_tiles = decay_products.log_decay_gradient(totals[:-2], *totals[-2:])
        over_tiles = over_tiles + dlog.total[:, None]
    else:
        over_tiles = decay_products.log_decay_gradient(totals)
    return (inside + over_tiles.reshape(-1, 1, N)).reshape(shape)


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
        A = _scores(chunk, r_, k_, masks, levels)
        dv = dv + chunk.dot("zts,ztn->zsn", A, g_).reshape(dv.shape)
        dA = chunk.dot("ztn,zsn->zts", g_, v_)
        for mask, c in zip(masks, levels, strict=True):
            D = jnp.where(mask, dA, 0)
            dX = chunk.dot("zts,zsn->ztn", D, k_ * c) * c
            dY = chunk.dot("zts,ztn->zsn", D, r_ * c) * c
            dr = dr + dX.reshape(dr.shape)
            dk = dk + dY.reshape(dk.shape)
            dlog[-1].append(r_ * dX + k_ * dY)
    return dr, dk, dv, dbonus, Factors(*dlog)


def _tiers(chunk: Chunk, factors: Factors):
    """(masks, factors): inside tiles, then over the tiles of the chunk."""
    return (chunk.tile_masks, factors.tile), (chunk.cross_masks, factors.cross)


def _fold(x: Array, shape: tuple[int, ...]) -> Array:
    return x.reshape(shape)  # [G, C, N] -> [Z, L, N], or as it is


def _scores(chunk: Chunk, r, k, masks, levels):
    """A without its diagonal: the sum over levels of M o ((r c)(k c)^T)."""
    return sum(
        jnp.where(mask, chunk.dot("ztn,zsn->zts", r * c, k * c), 0)
        for mask, c in zip(masks, levels, strict=True)
    )
