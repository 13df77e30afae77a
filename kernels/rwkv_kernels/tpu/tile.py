"""The tokens of one tile among themselves: the dyadic form, forward and backward.

With c the factors of a level and M its pairs, both directions at once,

  A = diag(r . u . k) + sum_levels M o ((r c)(k c)^T),    y = A v.

The diagonal is one more product, of r u and k under the mask t = s: a sum over lanes would be work
for the cross-lane unit. The backward pass needs A^T alone, and computes it as such; see
`rwkv_kernels.dyadic` for its formulas. Where decays are gentle, one product on each side of the
diagonal stands in the place of all levels (`gentle.py`).

Arrays are float32 [R, C], R tokens of which a multiple of 8; what lies beyond the sequence has r, k
and v of 0 and a decay of 1.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from rwkv_kernels.tpu import gentle, levels
from rwkv_kernels.tpu.lanes import SUBLANES, Lanes, Stack
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
    to_edges = edges(tile, decay)

    def at_once() -> list[Array]:
        P, Q = gentle.factors(to_edges)
        A = _masked(t == s, lanes.scores(r * u, lanes.stack(k)))
        A = _where(s < t, lanes.scores(r * P, lanes.stack(k * Q)), A)
        if tile.causal:
            return A
        return _where(t < s, lanes.scores(r * Q, lanes.stack(k * P)), A)

    def by_levels() -> list[Array]:
        level = levels.single_tokens(to_slabs(decay))
        k_stack = lanes.stack(k)
        A = _masked(t == s, lanes.scores(r * u, k_stack))
        while level.m < tile.top:
            if level.m == 1:
                scores = lanes.scores(r, k_stack)
            else:
                c = to_rows(levels.factor(level))
                scores = lanes.scores(r * c, lanes.stack(k * c))
            A = _where(_pairs(tile, t, s, level.m), scores, A)
            level = levels.join(level)
        return A

    A = gentle.choose(decay, to_edges, at_once, by_levels)
    return lanes.apply(A, v_stack), to_edges


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Of what the pairs inside a tile were made of; log_decay: of the decays' logarithms."""

    r: Float[Array, "R C"]
    k: Float[Array, "R C"]
    v: Float[Array, "R C"]
    u: Float[Array, "1 C"]
    log_decay: Float[Array, "R C"]


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
    to_edges = edges(tile, decay)
    g_stack, r_stack, k_stack = lanes.stack(g), lanes.stack(r), lanes.stack(k)
    dA = lanes.scores(g, lanes.stack(v))
    dAt = lanes.scores(v, g_stack)

    itself = t == s
    At = _masked(itself, lanes.scores(k * u, r_stack))
    dX = lanes.apply(_masked(itself, dA), k_stack)
    dY = lanes.apply(_masked(itself, dAt), r_stack)
    du = jnp.sum(r * dX, axis=0, keepdims=True)
    of_itself = u * dX, u * dY

    def at_once() -> tuple[list[Array], Array, Array, Array]:
        P, Q = gentle.factors(to_edges)
        (dr, dk), scores = of_itself, At
        later, earlier = jnp.zeros_like(r), jnp.zeros_like(r)  # of a pair's tokens: of their factor
        for on_left in (False,) if tile.causal else (False, True):
            pairs, turned = (t < s, s < t) if on_left else (s < t, t < s)
            of_r, of_k = (Q, P) if on_left else (P, Q)
            x, y = r * of_r, k * of_k
            x_stack, y_stack = lanes.stack(x), lanes.stack(y)
            scores = _where(turned, lanes.scores(y, x_stack), scores)
            dX = lanes.apply(_masked(pairs, dA), y_stack)
            dY = lanes.apply(_masked(turned, dAt), x_stack)
            dr, dk = dr + dX * of_r, dk + dY * of_k
            by_r, by_k = gentle.rounded(lanes, x) * dX, gentle.rounded(lanes, y) * dY
            later += by_k if on_left else by_r
            earlier += by_r if on_left else by_k
        # A decay is in all pairs whose later token is after it, but for those whose earlier one is,
        # too, or is its own.
        zeros = jnp.zeros_like(r)
        dlog = log_decay_gradient(tile, later - earlier, zeros, zeros[:1]) - earlier
        row = lax.broadcasted_iota(jnp.int32, dlog.shape, 0)
        return scores, dr, dk, jnp.where(row > 0, dlog, 0)  # nothing lies before the first

    def by_levels() -> tuple[list[Array], Array, Array, Array]:
        (dr, dk), scores = of_itself, At
        level = levels.single_tokens(to_slabs(decay))
        factors: list[Array] = []
        while level.m < tile.top:
            pairs, turned = _pairs(tile, t, s, level.m), _pairs(tile, s, t, level.m)
            if level.m > 1:  # neighbours have nothing between them
                c = to_rows(levels.factor(level))
                x_stack, y_stack = lanes.stack(r * c), lanes.stack(k * c)
                new = lanes.scores(k * c, x_stack)
            else:
                x_stack, y_stack = r_stack, k_stack
                new = lanes.scores(k, x_stack)
            scores = _where(turned, new, scores)
            dX = lanes.apply(_masked(pairs, dA), y_stack)
            dY = lanes.apply(_masked(turned, dAt), x_stack)
            if level.m > 1:
                dX, dY = dX * c, dY * c
            dr, dk = dr + dX, dk + dY
            factors.append(to_slabs(r * dX + k * dY))
            level = levels.join(level)
        zeros = jnp.zeros_like(r)
        return scores, dr, dk, log_decay_gradient(tile, zeros, zeros, zeros[:1], factors)

    scores, dr, dk, dlog = gentle.choose(decay, to_edges, at_once, by_levels)
    return Gradients(dr, dk, lanes.apply(scores, g_stack), du, dlog), to_edges


def log_decay_gradient(
    tile: Tile,
    before: Float[Array, "R C"],
    after: Float[Array, "R C"],
    total: Float[Array, "1 C"],
    factors: Sequence[Float[Array, "S 8 C"]] = (),
) -> Float[Array, "R C"]:
    """The gradient of each decay's logarithm, from those of products to the tile's edges, and of
    its levels' factors.
    """
    first = lax.broadcasted_iota(jnp.int32, (1, SUBLANES, 1), 1) == 0
    dlog = Level(tile.top, to_slabs(before), to_slabs(after), jnp.where(first, total[None], 0))
    for i in reversed(range((tile.top - 1).bit_length())):
        factor = factors[i] if factors else jnp.zeros_like(dlog.before)
        dlog = levels.join_gradient(1 << i, factor, dlog)
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


def _where(pairs: Array, chosen: list[Array], other: list[Array]) -> list[Array]:
    return [jnp.where(pairs, x, y) for x, y in zip(chosen, other, strict=True)]


def _masked(pairs: Array, x: list[Array]) -> list[Array]:
    return [jnp.where(pairs, y, 0) for y in x]
