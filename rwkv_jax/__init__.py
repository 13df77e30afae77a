"""RWKV-CLIP in JAX. `load` gives a trained model; nothing heavy is imported before it is called."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rwkv_jax.models.params import WhichParams
    from rwkv_jax.pretrained import PretrainedClip

__all__ = ["load"]


def load(
    path: str | PathLike[str], dtype: str = "auto", *, params: WhichParams = "live"
) -> PretrainedClip:
    """Loads a weights folder, a training run's folder, or one of a run's checkpoints.

    See `rwkv_jax.pretrained.load`.
    """
    from rwkv_jax import pretrained

    return pretrained.load(path, dtype, params=params)
