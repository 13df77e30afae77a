"""Which texts are right for which images, as one number a pair: equal numbers are right."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from rwkv_jax.training.config import Positives


def pair_labels(concept: Int[Array, "B"], positives: Positives) -> Int[Array, "B"]:
    """int32 labels of the pairs of a global batch; image i and text j belong together where equal.

    With "pair" every pair has a label of its own. With "concept" the pairs of one concept share
    theirs, and a negative concept (unknown) is only itself.

    Example: concepts [7, 7, -1, -1] give [7, 7, -3, -4].
    """
    index = jnp.arange(len(concept), dtype=jnp.int32)
    if positives == "pair":
        return index
    return jnp.where(concept >= 0, concept.astype(jnp.int32), -1 - index)


def same_label(rows: Int[Array, "R"], columns: Int[Array, "C"]) -> Bool[Array, "R C"]:
    """Which of the columns are right for which of the rows."""
    return rows[:, None] == columns[None, :]
