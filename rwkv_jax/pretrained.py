"""A trained model to use: from disk to features, pictures and strings included."""

import os
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float32, Int32
from PIL import Image

from rwkv_jax.data.preprocess import images_to_batch, normalise
from rwkv_jax.data.tokenizer import VOCABULARY_SIZE, Tokenizer
from rwkv_jax.models.params import WhichParams, model_from_params
from rwkv_jax.precision import compute_dtype
from rwkv_jax.weights import Weights, load_weights


def load(
    path: str | os.PathLike[str], dtype: str = "auto", *, params: WhichParams = "live"
) -> "PretrainedClip":
    """Loads a trained model onto one local device.

    Args:
        path: a weights folder (model.json and params/), a training run's folder (its newest whole
            checkpoint is taken), or one of its checkpoints, RUN/checkpoints/STEP.
        dtype: compute dtype: "auto" (bfloat16 on accelerators, float32 on a CPU), "float32" or
            "bfloat16". Parameters and features are float32 always.
        params: "ema" takes the moving average that the run kept beside its parameters.

    Raises:
        FileNotFoundError: there is no model at `path`.
        WeightsError (a ValueError): it is damaged, its arrays are another model's, or there is no
            average.
    """
    compute = compute_dtype(dtype)  # a wrong name should not wait for a gigabyte to be read
    return PretrainedClip(load_weights(Path(path), params), compute)


class PretrainedClip:
    """A model with its weights, and what pictures and texts must go through to reach it."""

    def __init__(self, weights: Weights, dtype: jnp.dtype) -> None:
        self.config = weights.config
        self.source = weights.source  # the folder that the parameters came from
        self.step = weights.step  # of the training run, None for a weights folder
        self.model = model_from_params(weights.config, weights.params, dtype=dtype)
        graphdef, self._state = nnx.split(self.model)
        self._encode_image = jax.jit(lambda state, x: nnx.merge(graphdef, state).encode_image(x))
        self._encode_text = jax.jit(lambda state, x: nnx.merge(graphdef, state).encode_text(x))

    @property
    def logit_scale(self) -> float:
        """What cosine similarities are multiplied by: exp of the parameter, 1/0.07 untrained."""
        return float(jnp.exp(self.model.logit_scale[...]))

    def encode_image(self, pixels: Float32[Array, "B H W 3"]) -> Float32[Array, "B D"]:
        """Features before L2 normalisation of normalised pixels, as `preprocess` gives them.

        H and W may differ from the size of training: positions are resized.

        Raises:
            ValueError: wrong shape, or pixels that are no floats (uint8 ones are not normalised).
        """
        if not jnp.issubdtype(pixels.dtype, jnp.floating):
            raise ValueError(
                f"pixels must be normalised float32, got {pixels.dtype}: `preprocess` makes them"
                " from PIL images"
            )
        return self._encode_image(self._state, pixels)

    def encode_text(self, token_ids: Int32[Array, "B L"]) -> Float32[Array, "B D"]:
        """Features before L2 normalisation of token ids, as `tokenize` gives them.

        Raises:
            ValueError: more tokens than the context holds, ids outside the vocabulary, no integers.
        """
        if not jnp.issubdtype(token_ids.dtype, jnp.integer):
            raise ValueError(f"token ids must be int32, got {token_ids.dtype}")
        ids, vocabulary = np.asarray(token_ids), self.config.text.vocab_size
        if ids.size and not (ids.min() >= 0 and ids.max() < vocabulary):
            raise ValueError(
                f"token ids must lie in [0, {vocabulary}), got {ids.min()} to {ids.max()}"
            )
        return self._encode_text(self._state, token_ids)

    def preprocess(self, images: Sequence[Image.Image]) -> Float32[Array, "B S S 3"]:
        """PIL images of any size and mode -> normalised pixels at the model's image size.

        The shorter side is resized bicubically and the centre cropped, as the evaluation does.
        """
        return normalise(jnp.asarray(images_to_batch(images, self.config.image.image_size)))

    def tokenize(self, texts: Sequence[str]) -> Int32[np.ndarray, "B L"]:
        """Texts -> CLIP token ids at the model's context length; too long ones lose their tail.

        Raises:
            ValueError: the model's vocabulary is smaller than CLIP's.
        """
        if self.config.text.vocab_size < VOCABULARY_SIZE:
            raise ValueError(
                f"this model's vocabulary has {self.config.text.vocab_size} tokens, CLIP's has"
                f" {VOCABULARY_SIZE}: it was trained with another tokenizer; give encode_text the"
                " token ids of that one"
            )
        return Tokenizer(self.config.text.context_length)(texts)
