"""Which part of which head each block, or each of its warpgroups, works on."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int


class Grid(NamedTuple):
    """A head's parts side by side.

    Attributes:
      batches, heads, parts: how many there are, of each of a batch's heads so many parts.
      last_apart: the last parts of all heads come after all others. Where they go another way
        through a kernel, only one of the two is in a multiprocessor's instruction cache then.
    """

    batches: int
    heads: int
    parts: int
    last_apart: bool = False

    def at(self, place: Int[Array, ""]) -> tuple[Int[Array, ""], Int[Array, ""]]:
        """The head, of all batches' heads, and the part of it."""
        together = self.parts - self.last_apart
        if not together:
            return place, jnp.int32(0)
        head, part = lax.div(place, together), lax.rem(place, together)
        if not self.last_apart:
            return head, part
        others = self.batches * self.heads * together
        last = place >= others
        return jnp.where(last, place - others, head), jnp.where(last, together, part)
