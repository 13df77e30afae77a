"""What the towers make of their blocks' results, and what each is given."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_values import with_random_values

from rwkv_jax.models.config import ClipConfig, ImageConfig, TextConfig
from rwkv_jax.models.rwkv_clip import RwkvClip
from rwkv_jax.models.text_encoder import TextEncoder

IMAGE = ImageConfig(16, 8, width=8, heads=1, depth=3, hidden_rate=1)
TEXT = TextConfig(vocab_size=16, context_length=4, width=8, heads=1, depth=1, hidden=8)


@pytest.fixture(scope="module")
def encode_alike():
    """(what the last norm gives for every token, positions pooled of three rows) -> features."""
    text = with_random_values(lambda: TextEncoder(TEXT, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(text)

    def encode(token, pooled):
        text = nnx.merge(graphdef, state)
        text.norm_out.scale, text.norm_out.bias = nnx.Param(jnp.zeros(8)), nnx.Param(token)
        return text(jnp.ones((3, 4), jnp.int32), pooled=pooled)

    return encode


POOLED = jnp.array([1, 2, 4])


def test_so_many_positions_are_pooled(encode_alike):
    token = np.arange(1.0, 9.0, dtype=np.float32)
    features = jax.jit(encode_alike)(token, POOLED)
    np.testing.assert_allclose(features, [token / np.linalg.norm(token)] * 3, rtol=1e-6)


def test_a_token_of_all_zeros_has_finite_gradients(encode_alike):
    gradient = jax.jit(jax.grad(lambda token: jnp.sum(encode_alike(token, POOLED))))(jnp.zeros(8))
    chex.assert_tree_all_finite(gradient)


def test_each_tower_has_a_key_of_its_own(monkeypatch):
    model = nnx.eval_shape(lambda: RwkvClip(ClipConfig(IMAGE, TEXT), rngs=nnx.Rngs(0)))
    model.logit_scale = nnx.Param(jnp.float32(0))
    for name in ("encode_image", "encode_text"):
        monkeypatch.setattr(RwkvClip, name, lambda *_, key: jax.random.key_data(key).tolist())
    image, text, _ = model(None, None, key=jax.random.key(0))
    assert image != text
