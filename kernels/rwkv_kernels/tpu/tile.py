"""The tokens of one tile among themselves: the dyadic form, forward and backward.

With c the factors of a level and M its pairs, both directions at once,

  A = diag(r . u . k) + sum_levels M o ((r c)(k c)^T),    y = A v.

The diagonal is one more product, of r u and k under the mask t = s: a sum over lanes would be work
for the cross-lane unit. The backward pass needs A^T alone, and computes it as such; see
`rwkv_kernels.dyadic` for its formulas.

Arrays are float32 [R, C], R tokens of which a multiple of 8; what lies beyond the sequence has r, k
and v of 0 and a decay of 1.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from rwkv_kernels.tpu import levels
from rwkv_kernels.tpu.lanes import Lanes, Stack
from rwkv_kernels.tpu.levels import Level, to_rows, to_slabs


@dataclasses.dataclass(frozen=True)
class Tile:
    """What is static about a tile.

    Attributes:
      lanes: where heads lie.
      rows: R.
      causal: whether a token sees only those before it, and itself.
    """

    lanes: Lanes
    rows: int
    causal: bool

    @property
    def top(self) -> int:
        """The first level that has nothing left to join."""
        return 1 << (self.rows - 1).bit_length()


def output(
    tile: Tile,
    r: Float[Array, "R C"],
    k: Float[Array, "R C"],
    u: Float[Array, "1 C"],
    decay: Float[Array, "R C"],
    v_stack: Stack,
) -> tuple[Float[Array, "R C"], Level]:
    """y of the pairs inside the tile, and the products of decays to the tile's edges."""
    lanes = tile.lanes
    t, s = lanes.pair(tile.rows)
    apart = t ^ s
    level = levels.single_tokens(to_slabs(decay))
    k_stack = lanes.stack(k)
    A = [jnp.where(apart == 0, x, 0) for x in lanes.scores(r * u, k_stack)]
    while level.m < tile.top:
        if level.m == 1:
            scores = lanes.scores(r, k_stack)
        else:
            c = to_rows(levels.factor(level))
            scores = lanes.scores(r * c, lanes.stack(k * c))
        pairs = _pairs(tile, t, s, level.m)
        A = [jnp.where(pairs, x, a) for x, a in zip(scores, A, strict=True)]
        level = levels.join(level)
    return lanes.apply(A, v_stack), level


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Of what the pairs inside a tile were made of."""

    r: Float[Array, "R C"]
    k: Float[Array, "R C"]
    v: Float[Array, "R C"]
    u: Float[Array, "1 C"]
    factors: list[Float[Array, "S 8 C"]]  # of the logarithms of each level's factors


def output_gradient(
    tile: Tile,
    r: Float[Array, "R C"],
    k: Float[Array, "R C"],
    v: Float[Array, "R C"],
    u: Float[Array, "1 C"],
    decay: Float[Array, "R C"],
    g: Float[Array, "R C"],
) -> tuple[Gradients, Level]:
    """Gradients from that of y, g; and the products of decays to the tile's edges."""
    lanes = tile.lanes
    t, s = lanes.pair(tile.rows)
    g_stack, r_stack, k_stack = lanes.stack(g), lanes.stack(r), lanes.stack(k)
    dA = lanes.scores(g, lanes.stack(v))
    dAt = lanes.scores(v, g_stack)

    itself = t == s
    At = [jnp.where(itself, x, 0) for x in lanes.scores(k * u, r_stack)]
    dX = lanes.apply([jnp.where(itself, x, 0) for x in dA], k_stack)
    dY = lanes.apply([jnp.where(itself, x, 0) for x in dAt], r_stack)
    du = jnp.sum(r * dX, axis=0, keepdims=True)
    dr, dk = u * dX, u * dY

    level = levels.single_tokens(to_slabs(decay))
    factors: list[Array] = []
    while level.m < tile.top:
        pairs, turned = _pairs(tile, t, s, level.m), _pairs(tile, s, t, level.m)
        if level.m > 1:  # neighbours have nothing between them
            c = to_rows(levels.factor(level))
            x_stack, y_stack = lanes.stack(r * c), lanes.stack(k * c)
            scores = lanes.scores(k * c, x_stack)
        else:
            x_stack, y_stack = r_stack, k_stack
            scores = lanes.scores(k, x_stack)
        At = [jnp.where(turned, new, old) for new, old in zip(scores, At, strict=True)]
        dX = lanes.apply([jnp.where(pairs, d, 0) for d in dA], y_stack)
        dY = lanes.apply([jnp.where(turned, d, 0) for d in dAt], x_stack)
        if level.m > 1:
            dX, dY = dX * c, dY * c
        dr, dk = dr + dX, dk + dY
        factors.append(to_slabs(r * dX + k * dY))
        level = levels.join(level)
    return Gradients(dr, dk, lanes.apply(At, g_stack), du, factors), level


def log_decay_gradient(factors: list[Float[Array, "S 8 C"]], edges: Level) -> Float[Array, "R C"]:
    """The gradient of each decay's logarithm, from those of the factors and of the edges."""
    dlog = edges
    for i in reversed(range(len(factors))):
        dlog = levels.join_gradient(1 << i, factors[i], dlog)
    return to_rows(dlog.total)


def edges(tile: Tile, decay: Float[Array, "R C"]) -> Level:
    """The products of decays to the tile's edges, alone."""
    level = levels.single_tokens(to_slabs(decay))
    while level.m < tile.top:
        level = levels.join(level)
    return level


def _pairs(tile: Tile, t, s, m: int):
    """Which scores are level m's; with t and s exchanged, those of A^T."""
    apart = t ^ s
    pairs = (apart >= m) & (apart < 2 * m)
    return pairs & (s < t) if tile.causal else pairs
