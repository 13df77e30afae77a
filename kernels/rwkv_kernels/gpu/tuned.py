"""Which tile choices a device was found to run quickest: `tuned.json`, written by `make tune`.

A list of {"device": its name as JAX gives it, "dtype", "shape": [B, T, H, N], "tiling": fields of
`Tiling`}. Only what was measured on the device is kept there. No entry: the default.
"""

import functools
import json
import logging
from importlib import resources
from typing import Any

from rwkv_kernels.gpu.plan import TILE
from rwkv_kernels.gpu.tiling import Tiling, default

FILE = "tuned.json"

logger = logging.getLogger(__name__)


def best(device_kind: str, shape: tuple[int, ...], dtype: str = "bfloat16") -> Tiling:
    """The measured choice for exactly this call; the default where nothing was measured, or what
    was does not fit the call, which is logged.

    Raises:
      ValueError: the table is damaged, or an entry no choice.
    """
    B, T, H, N = shape
    tiles = -(-T // TILE)
    known = _table().get((device_kind, dtype, tuple(shape)))
    misfits = () if known is None else known.misfits(N, tiles)
    if misfits:
        logger.warning("%s: %s for %s: %s", FILE, known, list(shape), "; ".join(misfits))
    return default(B * H, tiles) if known is None or misfits else known


def choices(text: str, file: str) -> dict[tuple[str, str, tuple[int, ...]], Tiling]:
    """What a table says, by device, dtype and shape.

    Raises:
      ValueError: it is damaged, or an entry no choice; names `file` and the entry.
    """
    try:
        entries: list[dict[str, Any]] = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}): write it anew by `make tune`.") from error
    found = {}
    for entry in entries:
        try:
            key = entry["device"], entry["dtype"], tuple(entry["shape"])
            found[key] = Tiling(**entry["tiling"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file}: {entry} is no choice of a device, dtype, shape and tiling: {error}."
            ) from error
    return found


@functools.cache
def _table() -> dict[tuple[str, str, tuple[int, ...]], Tiling]:
    return choices(resources.files(__package__).joinpath(FILE).read_text(), FILE)
