"""The image tower: pixels -> patches -> blocks -> one feature an image."""

import functools

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from rwkv_jax.models import inits
from rwkv_jax.models.block import run_blocks, stack_blocks
from rwkv_jax.models.config import ImageConfig
from rwkv_jax.models.layers import by_patches
from rwkv_jax.models.norms import LayerNorm
from rwkv_jax.models.positions import resize_positions
from rwkv_jax.models.spec import BlockInits, BlockSpec, by_own_share
from rwkv_jax.models.token_shift import image_shift
from rwkv_jax.wkv import bi_wkv6

IMAGE_INITS = BlockInits(
    receptance=inits.fan_in_uniform,
    key=inits.fan_in_uniform,
    value=inits.fan_in_uniform,
    gate=inits.fan_in_uniform,
    output=inits.fan_in_uniform,
    lora_down=inits.uniform(1e-4),
    lora_up=inits.uniform(1e-4),
    head_norm_scale=inits.unit_scale,
    channel_mix=inits.own_share,
    channel_key=inits.fan_in_uniform,
    channel_receptance=inits.fan_in_uniform,
    channel_value=inits.fan_in_uniform,
)


def image_block_spec(config: ImageConfig) -> BlockSpec:
    """Vision-RWKV's blocks."""
    return BlockSpec(
        width=config.width,
        heads=config.heads,
        hidden=config.hidden,
        depth=config.depth,
        wkv=bi_wkv6,
        interpolate=by_own_share,
        head_norm_eps=1e-5,
        inits=IMAGE_INITS,
        layer_scale=config.layer_scale,
        post_norm=config.post_norm,
        key_norm=config.key_norm,
    )


class PatchEmbed(nnx.Module):
    """A product of every patch of an image with the same kernel, and a bias."""

    def __init__(self, patch_size: int, width: int, *, rngs: nnx.Rngs) -> None:
        shape = (patch_size, patch_size, 3, width)
        self.kernel = nnx.Param(inits.fan_in_uniform(rngs.params(), shape))
        bound = (3 * patch_size**2) ** -0.5
        self.bias = nnx.Param(inits.uniform(bound)(rngs.params(), (width,)))

    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B h w D"]:
        """Patches in float32, products in the dtype of `pixels`."""
        return by_patches(pixels, self.kernel, out_dtype=jnp.float32) + self.bias[...]


class ImageEncoder(nnx.Module):
    """Patches plus learned positions, LN, blocks, LN, then the mean patch or the cls token."""

    def __init__(self, config: ImageConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.config = config
        self.dtype = jnp.dtype(dtype)
        grid = (config.grid, config.grid)
        self.patch_embed = PatchEmbed(config.patch_size, config.width, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((*grid, config.width)))
        self.cls_token = nnx.Param(jnp.zeros(config.width)) if config.with_cls_token else None
        self.norm_in = LayerNorm(config.width)
        self.blocks = stack_blocks(image_block_spec(config), rngs=rngs)
        self.norm_out = LayerNorm(config.width)

    def __call__(
        self, pixels: Float[Array, "B H W 3"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "B D"]:
        """Normalised float32 pixels of any size -> float32 features, not L2-normalised."""
        config = self.config
        if pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise ValueError(f"pixels must be [B, H, W, 3], got shape {pixels.shape}")
        x = self.patch_embed(pixels.astype(self.dtype))
        B, h, w, D = x.shape
        x = x + resize_positions(self.positions[...], (h, w))
        x = x.reshape(B, h * w, D)  # [B, h, w, D] -> [B, T, D]
        if self.cls_token is not None:
            cls = jnp.broadcast_to(self.cls_token[...], (B, 1, D))
            x = jnp.concatenate([x, cls], axis=1)
        shift = functools.partial(
            image_shift, heads=config.heads, grid=(h, w), with_cls_token=config.with_cls_token
        )
        x = run_blocks(
            self.blocks,
            self.norm_in(x).astype(self.dtype),
            shift,
            max_drop_path=config.drop_path,
            key=key,
            remat=config.remat,
            unroll=config.unroll,
        )
        x = self.norm_out(x.astype(jnp.float32))
        return x[:, -1] if config.output_cls_token else jnp.mean(x[:, : h * w], axis=1)
