"""One measured number, and how it is shown."""

from typing import NamedTuple


class Figure(NamedTuple):
    """A (name, value) pair with what guessing gives.

    Attributes:
      name: e.g. "retrieval/new_artist/text_to_image/R@10".
      value: a share in [0, 1], or a rank from 1 if the name says so (`is_rank`).
      chance: the value that is expected of guessing.
    """

    name: str
    value: float
    chance: float


def is_rank(name: str) -> bool:
    """Whether a figure of this name is a place in an order, from 1, where less is better.

    Example:
      >>> is_rank("retrieval/test/text_to_image/mean_rank"), is_rank("text_to_image/R@1")
      (True, False)
    """
    return name.endswith("_rank")


def shown(name: str, value: float) -> str:
    """A figure's value for a reader: shares in percent, ranks as they are.

    Example:
      >>> shown("text_to_image/R@1", 0.125), shown("text_to_image/median_rank", 12.5)
      ('12.5%', '12.5')
    """
    return f"{value:.1f}" if is_rank(name) else f"{value:.1%}"
