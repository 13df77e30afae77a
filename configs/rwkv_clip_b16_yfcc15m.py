"""RWKV-CLIP-B/16 on YFCC15M: B/32's recipe with patches of 16 (the authors' RWKV_CLIP_B16.json)."""

import dataclasses

from rwkv_clip_b32_yfcc15m import config as b32

from rwkv_jax.models import rwkv_clip_b16

config = dataclasses.replace(b32, model=rwkv_clip_b16())
