"""The text tower: token ids -> blocks -> one feature a text."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rwkv_jax.models import inits
from rwkv_jax.models.block import run_blocks, stack_blocks
from rwkv_jax.models.config import TextConfig
from rwkv_jax.models.norms import LayerNorm
from rwkv_jax.models.spec import BlockInits, BlockSpec, by_shifted_share
from rwkv_jax.models.token_shift import text_shift
from rwkv_jax.wkv import bi_wkv6

TEXT_INITS = BlockInits(
    receptance=inits.scaled_orthogonal(1.0),
    key=inits.scaled_orthogonal(0.1),
    value=inits.scaled_orthogonal(1.0),
    gate=inits.scaled_orthogonal(0.1),
    output=inits.zeros,
    lora_down=inits.zeros,
    lora_up=inits.uniform(0.01),
    head_norm_scale=inits.growing_scale,
    channel_mix=inits.shifted_share,
    channel_key=inits.scaled_orthogonal(0.5),
    channel_receptance=inits.zeros,
    channel_value=inits.zeros,
)


def text_block_spec(config: TextConfig) -> BlockSpec:
    """RWKV-6's blocks, looking both ways."""
    return BlockSpec(
        width=config.width,
        heads=config.heads,
        hidden=config.hidden,
        depth=config.depth,
        wkv=bi_wkv6,
        interpolate=by_shifted_share,
        head_norm_eps=1e-5 * config.head_size_divisor**2,
        inits=TEXT_INITS,
    )


class TextEncoder(nnx.Module):
    """Embedding, LN, blocks, LN, each token L2-normalised, then their mean.

    There are no positions (token shift and WKV tell order) and no mask: padding takes part, in the
    blocks and in the mean, because the published weights were trained so.
    """

    def __init__(self, config: TextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.config = config
        self.dtype = jnp.dtype(dtype)
        shape = (config.vocab_size, config.width)
        self.embedding = nnx.Param(inits.uniform(1e-4)(rngs.params(), shape))
        self.norm_in = LayerNorm(config.width)
        self.blocks = stack_blocks(text_block_spec(config), rngs=rngs)
        self.norm_out = LayerNorm(config.width)

    def __call__(
        self,
        token_ids: Int[Array, "B T"],
        *,
        key: PRNGKeyArray | None = None,
        pooled: Int[Array, " B"] | None = None,
    ) -> Float[Array, "B D"]:
        """Token ids -> float32 features, not L2-normalised. An id outside the table gives NaN.

        Args:
            token_ids: int32.
            key: drops paths; None drops none.
            pooled: the mean is over so many first positions of each row; None, as the model is
                trained, takes all. The blocks see all positions either way.
        """
        config = self.config
        if token_ids.ndim != 2 or token_ids.shape[1] > config.context_length:
            raise ValueError(
                f"token ids must be [B, T] with T at most {config.context_length},"
                f" got shape {token_ids.shape}"
            )
        x = jnp.take(self.embedding[...], token_ids, axis=0)  # [B, T, D] float32
        x = run_blocks(
            self.blocks,
            self.norm_in(x).astype(self.dtype),
            functools.partial(text_shift, heads=config.heads),
            max_drop_path=config.drop_path,
            key=key,
            remat=config.remat,
            unroll=config.unroll,
        )
        x = self.norm_out(x.astype(jnp.float32))
        # The bound, 1e-12 squared, keeps the gradient of a token of all zeros finite.
        squared_length = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.maximum(squared_length, 1e-24))
        if pooled is None:
            return jnp.mean(x, axis=1)
        taken = jnp.arange(x.shape[1]) < pooled[:, None]  # [B, T]
        return jnp.sum(x, axis=1, where=taken[..., None]) / pooled[:, None]
