"""Initial values against numbers worked out by hand from the formulas of the paper's code."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rwkv_jax.models import ClipConfig, ImageConfig, RwkvClip, TextConfig, inits
from rwkv_jax.models.config import rwkv_clip_b16, rwkv_clip_b32
from rwkv_jax.models.params import abstract_params, flat_params, params_to_dict

# Layer 1 of 3 (p = 1/2, q = 2/3), channel 4 of 16 (i = 1/4), unless said otherwise.
POWER = 0.39685026  # (1/4)^(2/3)
ROOT = 0.62996052  # (1/4)^(1/3)


@pytest.fixture(scope="module")
def params():
    config = ClipConfig(
        ImageConfig(16, 8, width=16, heads=2, depth=3, hidden_rate=4, layer_scale=0.25),
        TextConfig(vocab_size=500, context_length=8, width=16, heads=2, depth=3, hidden=32),
    )
    init = jax.jit(lambda: params_to_dict(nnx.state(RwkvClip(config, rngs=nnx.Rngs(0)))))
    return {path: np.asarray(leaf) for path, leaf in flat_params(init()).items()}


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (rwkv_clip_b32(), 149_561_601),
        # 147 more positions, and a patch kernel of 16 instead of 32 pixels a side.
        (rwkv_clip_b16(), 149_561_601 + (196 - 49) * 640 - 3 * (32**2 - 16**2) * 640),
    ],
)
def test_number_of_parameters(config, count):
    leaves = jax.tree.leaves(abstract_params(config))
    assert sum(leaf.size for leaf in leaves) == count
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


@pytest.mark.parametrize("tower", ["image", "text"])
def test_what_both_towers_share(params, tower):
    mix = f"{tower}/blocks/spatial_mix"
    np.testing.assert_allclose(params[f"{mix}/maa_x"][1, 4], 1 - POWER, rtol=1e-5)
    w, k, v, r, g = params[f"{mix}/maa"][1, :, 4]
    np.testing.assert_allclose([w, k], 1 - POWER, rtol=1e-5)
    np.testing.assert_allclose(v, 1 - (POWER + 0.15), rtol=1e-5)
    np.testing.assert_allclose([r, g], 1 - ROOT, rtol=1e-5)
    # -6 + 5 (4/15)^1.35; the ends of every layer are -6 and -1.
    np.testing.assert_allclose(params[f"{mix}/decay"][1, 4], -5.1604878, rtol=1e-5)
    np.testing.assert_allclose(params[f"{mix}/decay"][:, [0, -1]], [[-6, -1]] * 3, rtol=1e-6)
    # (1 - n/15) / 2 + 0.1 ((n+1) % 3 - 1) for n = 4 and 5; [H, N] holds channel 4 at [0, 4].
    np.testing.assert_allclose(params[f"{mix}/bonus"][1, 0, 4:6], [0.4666667, 0.2333333], rtol=1e-5)
    for norm in ("norm1", "norm2"):
        assert (params[f"{tower}/blocks/{norm}/scale"] == 1).all()
        assert (params[f"{tower}/blocks/{norm}/bias"] == 0).all()
    assert (params[f"{mix}/head_norm/bias"] == 0).all()


def test_mixes_of_first_and_last_layer(params):
    # Layer 0: p = 0, q = 1. Layer 2: p = 1, q = 1/3, (1/4)^(1/3) and (1/4)^(1/6) = 0.7937005.
    v = params["image/blocks/spatial_mix/maa"][:, 2, 4]
    np.testing.assert_allclose(v[[0, 2]], [0.75, 1 - (ROOT + 0.3)], rtol=1e-5)
    r = params["text/blocks/spatial_mix/maa"][:, 3, 4]
    np.testing.assert_allclose(r[[0, 2]], [0.5, 1 - 0.7937005], rtol=1e-5)


def test_channel_mix_is_parametrised_by_opposite_shares(params):
    for mix in ("mix_k", "mix_r"):
        image, text = (params[f"{tower}/blocks/channel_mix/{mix}"] for tower in ("image", "text"))
        np.testing.assert_allclose(image[1, 4], POWER, rtol=1e-5)
        np.testing.assert_allclose(text[1, 4], 1 - POWER, rtol=1e-5)


def within(array, bound) -> bool:
    """Uniform in [-bound, bound]: never outside, and some of it near the bound."""
    return 0.9 * bound < np.abs(array).max() <= bound


def test_image_kernels(params):
    mix = "image/blocks/spatial_mix"
    for name in ("receptance", "key", "value", "gate", "output"):
        assert within(params[f"{mix}/{name}"], 1 / 4)  # 1/sqrt(16 inputs)
    for name in ("maa_w1", "maa_w2", "decay_w1", "decay_w2"):
        assert within(params[f"{mix}/{name}"], 1e-4)
    assert within(params["image/blocks/channel_mix/key"], 1 / 4)
    assert within(params["image/blocks/channel_mix/value"], 1 / 8)  # 64 inputs
    assert within(params["image/patch_embed/kernel"], 1 / math.sqrt(3 * 8 * 8))
    assert np.abs(params["image/patch_embed/bias"]).max() <= 1 / math.sqrt(3 * 8 * 8)
    assert (params["image/positions"] == 0).all()
    assert (params[f"{mix}/head_norm/scale"] == 1).all()
    assert (params["image/blocks/scale1"] == 0.25).all()


def test_text_kernels(params):
    mix = "text/blocks/spatial_mix"
    for name, scale in (("receptance", 1.0), ("value", 1.0), ("key", 0.1), ("gate", 0.1)):
        for kernel in params[f"{mix}/{name}"]:
            np.testing.assert_allclose(kernel @ kernel.T, scale**2 * np.eye(16), atol=1e-5)
    # 16 inputs, 32 outputs: 0.5 * sqrt(2), squared.
    for kernel in params["text/blocks/channel_mix/key"]:
        np.testing.assert_allclose(kernel @ kernel.T, 0.5 * np.eye(16), atol=1e-5)
    for name in ("maa_w1", "decay_w1", "output"):
        assert (params[f"{mix}/{name}"] == 0).all()
    for name in ("receptance", "value"):
        assert (params[f"text/blocks/channel_mix/{name}"] == 0).all()
    for name in ("maa_w2", "decay_w2"):
        assert within(params[f"{mix}/{name}"], 0.01)
    assert within(params["text/embedding"], 1e-4)
    # ((1 + layer) / 3)^0.7
    scale = params[f"{mix}/head_norm/scale"]
    np.testing.assert_allclose(scale, np.outer([0.4634631, 0.7528974, 1.0], np.ones(16)), rtol=1e-5)


def test_layers_differ_in_their_random_kernels(params):
    for path in ("image/blocks/spatial_mix/key", "text/blocks/spatial_mix/key"):
        assert np.abs(params[path][0] - params[path][1]).max() > 0.01


def test_logit_scale(params):
    np.testing.assert_allclose(params["logit_scale"], 2.6592600, rtol=1e-6)  # ln(1/0.07)


def test_a_stack_of_one_layer_starts_like_a_first_layer():
    np.testing.assert_allclose(inits.decay(0, 1, 16), inits.decay(0, 3, 16))
    np.testing.assert_allclose(inits.spatial_maa(0, 1, 16), inits.spatial_maa(0, 3, 16))
