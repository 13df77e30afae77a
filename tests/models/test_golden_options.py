"""The image tower's options against the authors' PyTorch code, padding and resizing included."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv_jax.convert.torch_layout import params_from_torch, pieces
from rwkv_jax.models import (
    ClipConfig,
    ImageConfig,
    TextConfig,
    abstract_params,
    bind,
    model_graphdef,
)
from rwkv_jax.models.params import flat_params

FIXTURE = Path(__file__).parents[1] / "fixtures" / "golden" / "image_options.npz"
# Remat must not show in the values; without it, the other golden tests are.
VARIANTS = {
    "cls_feature": {
        "with_cls_token": True,
        "output_cls_token": True,
        "layer_scale": 0.5,
        "key_norm": True,
        "remat": "block",
    },
    "post_norm": {"with_cls_token": True, "layer_scale": 0.5, "post_norm": True},
    "plain_post_norm": {"post_norm": True, "key_norm": True, "remat": "dots"},
}


def agree(got, wanted, tolerance) -> bool:
    """Norm of the difference within `tolerance` of the norm; a gradient of 0 must be exactly 0."""
    return np.linalg.norm(np.asarray(got) - wanted) <= tolerance * np.linalg.norm(wanted)


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_and_gradients(variant):
    image = ImageConfig(16, 4, width=16, heads=2, depth=2, hidden_rate=2, **VARIANTS[variant])
    text = TextConfig(vocab_size=4, context_length=4, width=16, heads=2, depth=1, hidden=4)
    config = ClipConfig(image, text)
    with np.load(FIXTURE, allow_pickle=False) as file:
        arrays = dict(file)
    theirs = {
        kind: {
            name.removeprefix(f"{variant}/{kind}/"): value
            for name, value in arrays.items()
            if name.startswith(f"{variant}/{kind}/")
        }
        for kind in ("weights", "grad")
    }
    # The text tower takes no part: any values will do.
    graphdef = model_graphdef(config, jnp.float32)
    abstract = abstract_params(config)
    wanted_pieces = list(pieces(abstract))
    for piece in wanted_pieces:
        if not piece.name.startswith("image_model"):
            shape = flat_params(abstract)[piece.path].shape[len(piece.index) :]
            theirs["weights"][piece.name] = np.zeros(piece.form.torch_shape(shape), np.float32)
    params = params_from_torch(config, theirs["weights"])

    pixels = jnp.asarray(arrays["image_15x18"].transpose(0, 2, 3, 1))

    def probed(params):
        features = bind(graphdef, params).encode_image(pixels)
        return jnp.sum(features * arrays["probe"]), features

    if variant == "post_norm":  # its gradients are made of what the other two have
        assert agree(jax.jit(probed)(params)[1], arrays[f"{variant}/features"], 1e-5)
        return
    (_, features), gradient = jax.jit(jax.value_and_grad(probed, has_aux=True))(params)
    assert agree(features, arrays[f"{variant}/features"], 1e-5)
    gradients = flat_params(gradient)
    for piece in wanted_pieces:
        if piece.name.startswith("image_model"):
            got = np.asarray(gradients[piece.path])[piece.index]
            wanted = piece.form.to_ours(theirs["grad"].pop(piece.name), got.shape)
            assert agree(got, wanted, 1e-4), piece.name
    assert not theirs["grad"]
