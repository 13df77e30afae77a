"""Which tile choices a device was found to run quickest: `tuned.json`, written by `make tune`.

A list of {"device": its name as JAX gives it, "dtype", "shape": [B, T, H, N], "tiling": fields of
`Tiling`}. Only what was measured on the device is kept there. No entry: the default.
"""

import functools
import json
from importlib import resources

from rwkv_kernels.gpu.plan import TILE
from rwkv_kernels.gpu.tiling import Tiling, default

FILE = "tuned.json"


def best(device_kind: str, shape: tuple[int, ...], dtype: str = "bfloat16") -> Tiling:
    """The measured choice for exactly this call; the default where nothing was measured.

    Raises:
      ValueError: an entry that is no choice, with its field.
    """
    B, T, H, _ = shape
    known = _table().get((device_kind, dtype, tuple(shape)))
    return default(B * H, -(-T // TILE)) if known is None else Tiling(**known)


@functools.cache
def _table() -> dict[tuple, dict[str, int]]:
    entries = json.loads(resources.files(__package__).joinpath(FILE).read_text())
    return {(e["device"], e["dtype"], tuple(e["shape"])): e["tiling"] for e in entries}
