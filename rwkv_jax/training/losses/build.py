"""From the configuration to a loss."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rwkv_jax.training.config import LossConfig
from rwkv_jax.training.losses.features import divide_gradient
from rwkv_jax.training.losses.full import PairLosses, full_sigmoid, full_softmax
from rwkv_jax.training.losses.ring import fitting_chunk
from rwkv_jax.training.losses.ring_sigmoid import ring_sigmoid
from rwkv_jax.training.losses.ring_softmax import ring_softmax

Loss = Callable[
    [
        Float[Array, "B D"],
        Float[Array, "B D"],
        Mapping[str, Float[Array, ""]],
        Int[Array, "B"],
    ],
    PairLosses,
]


def make_loss(config: LossConfig) -> Loss:
    """A `loss(image_features, text_features, logits, labels)` over the global batch.

    Its `logits` are the model's parameters `logit_scale` (a logarithm) and, for the sigmoid,
    `logit_bias`; `labels` those of `pair_labels`. A ring runs over the current mesh.

    Raises (the loss, when traced):
        ValueError: `config.chunk` does not divide the pairs of a device.
    """

    def loss(image, text, logits, labels):
        image, text = (divide_gradient(x, config.authors_devices) for x in (image, text))
        scale = jnp.exp(logits["logit_scale"])
        match config.kind, config.form:
            case "softmax", "full":
                return full_softmax(image, text, scale, labels)
            case "softmax", "ring":
                return ring_softmax(image, text, scale, labels, chunk=config.chunk)
            case "sigmoid", "full":
                return full_sigmoid(image, text, scale, logits["logit_bias"], labels)
            case "sigmoid", "ring":
                bias = logits["logit_bias"]
                return ring_sigmoid(image, text, scale, bias, labels, chunk=config.chunk)
        raise AssertionError(config)  # LossConfig knows no other

    return loss


def check_loss_fits(config: LossConfig, pairs: int) -> None:
    """Raises ValueError where a ring's chunk does not divide the `pairs` of a device."""
    if config.form == "ring":
        fitting_chunk(config.chunk, pairs)
