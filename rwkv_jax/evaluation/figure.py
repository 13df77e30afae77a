"""One measured number."""

from typing import NamedTuple


class Figure(NamedTuple):
    """A (name, value) pair with what guessing gives.

    Attributes:
      name: e.g. "retrieval/new_artist/text_to_image/R@10".
      value: a share in [0, 1].
      chance: the value that is expected of guessing.
    """

    name: str
    value: float
    chance: float
