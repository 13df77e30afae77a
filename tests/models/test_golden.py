"""The model against what the authors' PyTorch code gives for the same weights and inputs."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rwkv_jax.convert.torch_config import config_from_torch
from rwkv_jax.convert.torch_layout import params_from_torch, pieces
from rwkv_jax.models import layers, norms
from rwkv_jax.models.params import (
    abstract_params,
    flat_params,
    model_from_params,
    params_to_dict,
)

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "rwkv_clip_tiny.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def model():
    config = config_from_torch(json.loads((GOLDEN / "rwkv_clip_tiny.json").read_text()))
    with np.load(GOLDEN / "rwkv_clip_tiny_weights.npz", allow_pickle=False) as file:
        return config, model_from_params(config, params_from_torch(config, dict(file)))


def relative_error(got, wanted) -> float:
    return float(np.linalg.norm(np.asarray(got) - wanted) / np.linalg.norm(wanted))


def channels_last(image):
    return jnp.asarray(image.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("size", ["32x32", "40x56"])
def test_image_features(golden, model, size):
    graphdef, state = nnx.split(model[1])
    encode = jax.jit(lambda state, pixels: nnx.merge(graphdef, state).encode_image(pixels))
    features = encode(state, channels_last(golden[f"image_{size}"]))
    assert features.dtype == jnp.float32
    assert relative_error(features, golden[f"image_features_{size}"]) < 1e-5


def test_text_features(golden, model):
    graphdef, state = nnx.split(model[1])
    features = jax.jit(lambda s, ids: nnx.merge(graphdef, s).encode_text(ids))(
        state, golden["text"]
    )
    assert relative_error(features, golden["text_features"]) < 1e-5


@pytest.mark.parametrize("way", ["cpu", "gpu", "tpu"])
def test_loss_and_every_gradient(golden, model, way, monkeypatch):
    """`way`: products and norms have another form on a TPU or a GPU; any device can run it."""
    for module in (layers, norms):
        monkeypatch.setattr(module, "platform", lambda: way)
    config, clip = model
    graphdef, state = nnx.split(clip)

    def loss(state):
        image, text, scale = nnx.merge(graphdef, state)(
            channels_last(golden["image_32x32"]), golden["text"]
        )
        image, text = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
        logits = scale * image @ text.T
        losses = [-jnp.mean(jnp.diag(jax.nn.log_softmax(x))) for x in (logits, logits.T)]
        return sum(losses) / 2, scale

    (value, scale), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(state)
    np.testing.assert_allclose(value, golden["loss"], rtol=1e-5)
    np.testing.assert_allclose(scale, golden["logit_scale"], rtol=1e-5)

    gradients = flat_params(params_to_dict(gradient))
    wanted = {name[5:]: value for name, value in golden.items() if name.startswith("grad/")}
    for piece in pieces(abstract_params(config)):
        got = np.asarray(gradients[piece.path])[piece.index]
        error = relative_error(got, piece.form.to_ours(wanted.pop(piece.name), got.shape))
        assert error < 1e-4, f"{piece.name}: {error}"
    assert not wanted
