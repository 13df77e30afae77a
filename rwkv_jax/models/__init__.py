"""RWKV-CLIP: configurations, the two encoders, and the model that pairs them."""

from rwkv_jax.models.config import (
    CLIP_LOGIT_SCALE,
    SIGLIP_LOGIT_BIAS,
    SIGLIP_LOGIT_SCALE,
    ClipConfig,
    ImageConfig,
    TextConfig,
    rwkv_clip_b16,
    rwkv_clip_b32,
)
from rwkv_jax.models.params import abstract_params, bind, model_from_params, model_graphdef
from rwkv_jax.models.rwkv_clip import RwkvClip

__all__ = [
    "CLIP_LOGIT_SCALE",
    "SIGLIP_LOGIT_BIAS",
    "SIGLIP_LOGIT_SCALE",
    "ClipConfig",
    "ImageConfig",
    "RwkvClip",
    "TextConfig",
    "abstract_params",
    "bind",
    "model_from_params",
    "model_graphdef",
    "rwkv_clip_b16",
    "rwkv_clip_b32",
]
