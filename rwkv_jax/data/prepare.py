"""`python -m rwkv_jax.data.prepare open_emoji --data-dir data`: downloads and writes a dataset."""

import sys
from typing import Annotated, Literal

import tyro

from rwkv_jax.data.open_emoji import dataset as open_emoji
from rwkv_jax.data.records import DatasetError


def prepare(
    dataset: Annotated[Literal["open_emoji"], tyro.conf.Positional], data_dir: str = "data"
) -> None:
    """Prepares a dataset and prints what is in it. One that is prepared already is left as it is.

    Args:
      dataset: which one.
      data_dir: where datasets are kept.
    """
    del dataset  # there is one
    print(open_emoji.describe(open_emoji.prepare(data_dir)))


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    try:
        tyro.cli(prepare, args=arguments, prog="python -m rwkv_jax.data.prepare")
    except (DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
