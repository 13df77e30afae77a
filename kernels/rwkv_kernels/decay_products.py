"""Products of decays over a balanced tree, and their gradients: all that multiplies decays.

A span [start, stop) of L steps is halved at its midpoint, the halves again, down to single steps.
For a pair (t, s) on two sides of a midpoint, what lies between them is the product of t's factor
and s's, a step's factor being the product of the decays strictly between it and the midpoint. So a
level needs one array of factors, which serves both directions, and each factor is at most 1:
nothing overflows, and what underflows is truly nothing.

A product over steps is never taken as a quotient, nor its logarithm's gradient as a difference of
cumulative sums: with decays that spike, such differences err by order 1. Here all is a chain of
products (values) and of sums (gradients) over exactly the steps that act. The chains are short (a
tile of at most 20 steps, then the tiles of a chunk) and unrolled: on a CPU that costs a quarter of
the same sums as a matrix product with zeros and ones.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

Split = tuple[int, int, int]  # start, midpoint, stop


@functools.cache
def levels(length: int) -> tuple[tuple[Split, ...], ...]:
    """The splits of [0, length), lowest level first; ceil(log2(length)) levels.

    >>> levels(5)
    (((0, 1, 2), (3, 4, 5)), ((0, 2, 3),), ((0, 3, 5),))
    """
    spans = [(0, length)]
    from_the_top: list[tuple[Split, ...]] = []
    while splits := tuple(
        (start, (start + stop + 1) // 2, stop) for start, stop in spans if stop - start > 1
    ):
        from_the_top.append(splits)
        spans = [half for a, mid, b in splits for half in ((a, mid), (mid, b))]
    return tuple(reversed(from_the_top))


def pairs(length: int) -> list[Bool[np.ndarray, "L L"]]:
    """A level each: which (t, s) lie on two sides of one midpoint. All pairs t != s, each once."""
    masks = []
    for level in levels(length):
        mask = np.zeros((length, length), bool)
        for start, mid, stop in level:
            mask[start:mid, mid:stop] = mask[mid:stop, start:mid] = True
        masks.append(mask)
    return masks


def right_of_midpoint(length: int) -> list[Bool[np.ndarray, " L"]]:
    """A level each: which steps lie on the right of their midpoint."""
    sides = []
    for level in levels(length):
        side = np.zeros(length, bool)
        for _, mid, stop in level:
            side[mid:stop] = True
        sides.append(side)
    return sides


def to_midpoint(decay: Float[Array, "Z L N"]) -> list[Float[Array, "Z L N"]]:
    """A level each: the product of the decays strictly between a step and its midpoint."""
    length = decay.shape[1]
    factors = []
    for level in levels(length):
        rows = [jnp.ones_like(decay[:, 0])] * length
        for start, mid, stop in level:
            for t in range(mid + 1, stop):
                rows[t] = rows[t - 1] * decay[:, t - 1]
            for t in range(mid - 2, start - 1, -1):
                rows[t] = rows[t + 1] * decay[:, t + 1]
        factors.append(jnp.stack(rows, axis=1))
    return factors


def to_edges(
    decay: Float[Array, "Z L N"],
) -> tuple[Float[Array, "Z L N"], Float[Array, "Z L N"], Float[Array, "Z N"]]:
    """The products of all decays before a step, of all after it, and of all."""
    length = decay.shape[1]
    before = [jnp.ones_like(decay[:, 0])]
    after = [jnp.ones_like(decay[:, 0])]
    for t in range(length - 1):
        before.append(before[-1] * decay[:, t])
        after.append(after[-1] * decay[:, length - 1 - t])
    return (
        jnp.stack(before, axis=1),
        jnp.stack(after[::-1], axis=1),
        before[-1] * decay[:, length - 1],
    )


def log_decay_gradient(
    decay: Float[Array, "Z L N"],
    midpoint_log: list[Float[Array, "Z L N"]],
    before_log: list[Float[Array, "Z L N"]],
    after_log: list[Float[Array, "Z L N"]],
) -> Float[Array, "Z L N"]:
    """The gradient of each decay's logarithm, from those of the logarithms of its products.

    The transpose of `to_midpoint` and `to_edges`: what reaches a step is the sum over the products
    that it is a factor of. Of `before_log` and `after_log` there may be any number; they add up.
    """
    length = decay.shape[1]
    chains = []  # (gradients, the steps they reach in turn, which neighbour's gradient comes in)
    for splits, gradient in zip(levels(length), midpoint_log, strict=True):
        for start, mid, stop in splits:
            chains.append((gradient, range(start + 1, mid), -1))
            chains.append((gradient, range(stop - 2, mid - 1, -1), +1))
    if before_log:
        chains.append((sum(before_log[1:], before_log[0]), range(length - 2, -1, -1), +1))
    if after_log:
        chains.append((sum(after_log[1:], after_log[0]), range(1, length), -1))

    zero = jnp.zeros_like(decay[:, 0])
    rows = [zero] * length
    for gradient, steps, neighbour in chains:
        running = zero
        for t in steps:
            running = running + gradient[:, t + neighbour]
            rows[t] = rows[t] + running
    return jnp.stack(rows, axis=1)
