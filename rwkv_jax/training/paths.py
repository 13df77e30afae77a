"""Rules about parameters as data: patterns that are searched for in a parameter's path."""

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from rwkv_jax.training.state import Params

Mask = Any  # parameter-shaped, of bools


class PathRuleError(ValueError):
    """A pattern that no parameter's path holds; the message names the setting and near paths."""


def map_paths(function: Callable[[str], Any], params: Params) -> Any:
    """A tree shaped as `params` of function("image/blocks/norm1/scale") and so on.

    `optax.MaskedNode`, which stands for a parameter that an optimizer does not see, has a path.
    """

    def at(path, _):
        return function("/".join(str(entry.key) for entry in path))

    return jax.tree_util.tree_map_with_path(
        at, params, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
    )


def found_in(patterns: Sequence[str], path: str) -> int | None:
    """The place of the first pattern that is found in `path`, None where none is."""
    hits = (place for place, pattern in enumerate(patterns) if re.search(pattern, path))
    return next(hits, None)


def check_all_found(setting: str, patterns: Sequence[str], paths: Sequence[str]) -> None:
    """Checks that every pattern is the first to be found in some path.

    Args:
        setting: what the patterns are of, for the message.

    Raises:
        PathRuleError: one is found in none, or only where an earlier one is.
    """
    firsts = {found_in(patterns, path) for path in paths}
    for place, pattern in enumerate(patterns):
        if place in firsts:
            continue
        if any(re.search(pattern, path) for path in paths):
            raise PathRuleError(
                f"{setting}: {pattern!r} is found only in paths that an earlier pattern is found"
                " in; put it before that one"
            )
        near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.0)
        raise PathRuleError(
            f"{setting}: {pattern!r} is found in no parameter's path; near ones are"
            f" {', '.join(near)}"
        )
