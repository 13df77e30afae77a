"""Model FLOPs against XLA's own count of the model's program."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from rwkv_jax.data.preprocess import normalise
from rwkv_jax.models import abstract_params, model_graphdef, rwkv_clip_b32
from rwkv_jax.models.flops import block_flops, patch_flops, train_flops
from rwkv_jax.models.params import bind
from rwkv_jax.models.text_encoder import text_block_spec
from rwkv_jax.training.losses import full_softmax


def test_a_block_by_hand():
    spec = text_block_spec(rwkv_clip_b32().text)  # D 640, ten heads of 64, hidden 2240
    projections = 5 * 640 * 640
    low_rank = 2 * 640 * 160 + 2 * 640 * 64
    channel_mix = 640 * 2240 + 2240 * 640 + 640 * 640
    wkv = 10 * 4 * 64 * 64
    assert block_flops(spec) == 2 * (projections + low_rank + channel_mix + wkv)


def test_a_frozen_tower_has_no_backward_pass():
    live, locked = train_flops(rwkv_clip_b32(), 8), train_flops(rwkv_clip_b32(), 8, frozen="text")
    assert locked.text == live.text / 3
    assert locked.image == live.image
    locked = train_flops(rwkv_clip_b32(), 8, frozen="image")
    # Three passes of the blocks and two of the patches, whose inputs need no gradient; one of each.
    assert 3 * locked.image - live.image == 8 * patch_flops(rwkv_clip_b32())
    assert locked.text == live.text


def test_within_a_tenth_of_xlas_count():
    """One block a tower: XLA counts the body of a loop once, and this loop has one turn."""
    model = rwkv_clip_b32()
    config = dataclasses.replace(
        model,
        image=dataclasses.replace(model.image, depth=1),
        text=dataclasses.replace(model.text, depth=1),
    )
    B = 4
    graphdef = model_graphdef(config, jnp.float32)

    def loss(params, images, texts):
        image, text, scale = bind(graphdef, params)(normalise(images), texts, key=jax.random.key(0))
        return full_softmax(image, text, scale, jnp.arange(B)).mean

    lowered = jax.jit(jax.value_and_grad(loss)).lower(
        abstract_params(config),
        jax.ShapeDtypeStruct((B, 224, 224, 3), jnp.uint8),
        jax.ShapeDtypeStruct((B, 77), jnp.int32),
    )
    counted = lowered.cost_analysis()["flops"]
    assert train_flops(config, B).total == pytest.approx(counted, rel=0.1)
