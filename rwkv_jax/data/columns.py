"""The names in a table's header, which become kinds of text: none empty, none twice."""

from collections.abc import Sequence
from pathlib import Path

from rwkv_jax.data.records import DatasetError


def column_names(header: Sequence[str], table: Path) -> list[str]:
    """The names without the spaces around them.

    Raises:
        DatasetError: a name is empty, as pandas' `to_csv` leaves its index's, or repeated.
    """
    names = [name.strip() for name in header]
    for index, name in enumerate(names):
        if not name:
            raise DatasetError(
                f"column {index + 1} of {table} has no name: name it, or take it out."
            )
        if name in names[:index]:
            raise DatasetError(
                f"columns {names.index(name) + 1} and {index + 1} of {table} are both named"
                f" {name!r}: rename one, or take it out."
            )
    return names
