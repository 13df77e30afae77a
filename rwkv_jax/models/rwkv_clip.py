"""RWKV-CLIP: an image tower and a text tower that meet in one space."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rwkv_jax.models.config import ClipConfig
from rwkv_jax.models.image_encoder import ImageEncoder
from rwkv_jax.models.text_encoder import TextEncoder


class RwkvClip(nnx.Module):
    """Two encoders and a logit scale. All state is float32 `nnx.Param`; there is no projection.

    The methods are pure functions of (parameters, input, key): with `key` None they are
    deterministic, with a key they drop paths at the configured rates. `dtype` is the compute dtype
    (see `rwkv_jax.precision`).

    Source: RWKV-CLIP (arXiv 2406.06973).
    """

    def __init__(
        self, config: ClipConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        self.image = ImageEncoder(config.image, dtype=dtype, rngs=rngs)
        self.text = TextEncoder(config.text, dtype=dtype, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.float32(config.logit_scale))  # a logarithm
        self.logit_bias = (
            None if config.logit_bias is None else nnx.Param(jnp.float32(config.logit_bias))
        )

    def encode_image(
        self, pixels: Float[Array, "B H W 3"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "B D"]:
        """Normalised float32 pixels -> float32 features before L2 normalisation."""
        return self.image(pixels, key=key)

    def encode_text(
        self,
        token_ids: Int[Array, "B T"],
        *,
        key: PRNGKeyArray | None = None,
        pooled: Int[Array, " B"] | None = None,
    ) -> Float[Array, "B D"]:
        """int32 token ids -> float32 features before L2 normalisation; see `TextEncoder`."""
        return self.text(token_ids, key=key, pooled=pooled)

    def __call__(
        self,
        pixels: Float[Array, "B H W 3"],
        token_ids: Int[Array, "B T"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B D"], Float[Array, "B D"], Float[Array, ""]]:
        """Both features, and the scale of the logits: exp(logit_scale)."""
        image_key, text_key = (None, None) if key is None else jax.random.split(key)
        return (
            self.encode_image(pixels, key=image_key),
            self.encode_text(token_ids, key=text_key),
            jnp.exp(self.logit_scale[...]),
        )
