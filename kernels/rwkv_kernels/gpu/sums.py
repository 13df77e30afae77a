"""What the backward kernel sums up over levels, tiles and states."""

from typing import NamedTuple

from jaxtyping import Array


class Sums(NamedTuple):
    """Gradients, float32 [64, n]: of r, k and log2 d / ln 2."""

    r: Array
    k: Array
    log_d: Array
