"""Spatial mix (RWKV-6's time mix): how tokens see each other.

Unlike attention there are no pairs of tokens: a decayed sum runs over the tokens, and how fast each
channel forgets is computed from the token itself. Unlike RWKV-6 the sum may run in both directions.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rwkv_jax.models import inits
from rwkv_jax.models.decays import decay_logits
from rwkv_jax.models.interpolations import interpolations
from rwkv_jax.models.layers import Kernel, by_itself, keep, linear
from rwkv_jax.models.norms import HeadNorm, LayerNorm
from rwkv_jax.models.spec import BlockSpec
from rwkv_jax.models.token_shift import TokenShift


class SpatialMix(nnx.Module):
    """Wo(HeadNorm(wkv(r, k, v, w, u)) * silu(g)), r, k, v, w and g from token-shifted inputs.

    Source: RWKV-6 (arXiv 2404.05892), section 4; RWKV-CLIP (arXiv 2406.06973), section 3.
    """

    def __init__(self, spec: BlockSpec, layer: int | Array, *, rngs: nnx.Rngs) -> None:
        D, depth, init = spec.width, spec.depth, spec.inits
        self.maa_x = nnx.Param(inits.spatial_maa_x(layer, depth, D))
        self.maa = nnx.Param(inits.spatial_maa(layer, depth, D))  # [w k v r g, D]
        self.maa_w1 = Kernel(init.lora_down(rngs.params(), (D, 5, spec.mix_rank)))
        self.maa_w2 = nnx.Param(init.lora_up(rngs.params(), (5, spec.mix_rank, D)))
        self.decay = nnx.Param(inits.decay(layer, depth, D))
        self.decay_w1 = Kernel(init.lora_down(rngs.params(), (D, spec.decay_rank)))
        self.decay_w2 = Kernel(init.lora_up(rngs.params(), (spec.decay_rank, D)))
        u = inits.bonus(layer, depth, D)
        self.bonus = nnx.Param(u.reshape(spec.heads, -1))  # [D] -> [H, N]
        self.receptance = Kernel(init.receptance(rngs.params(), (D, D)))
        self.key = Kernel(init.key(rngs.params(), (D, D)))
        self.value = Kernel(init.value(rngs.params(), (D, D)))
        self.gate = Kernel(init.gate(rngs.params(), (D, D)))
        self.output = Kernel(init.output(rngs.params(), (D, D)))
        self.key_norm = LayerNorm(D) if spec.key_norm else None
        scale = jnp.full(D, init.head_norm_scale(layer, depth))
        self.head_norm = HeadNorm(scale, spec.head_norm_eps)
        self.wkv = spec.wkv

    def __call__(self, x: Float[Array, "B T D"], shift: TokenShift) -> Float[Array, "B T D"]:
        B, T, D = x.shape
        H, N = self.bonus.shape
        xx = shift(x) - x
        # Each token chooses, for each of its five uses, how much of its neighbour to look at.
        R = self.maa_w2.shape[1]
        maa_w1 = self.maa_w1[...].reshape(D, 5 * R)  # [D, 5, R] -> [D, 5 R]
        z = jnp.tanh(keep(linear(x + xx * self.maa_x[...].astype(x.dtype), maa_w1)))
        # Not kept: wide results of thin products (rank R) are cheaper to compute again.
        x_w, x_k, x_v, x_r, x_g = interpolations(x, xx, z, self.maa[...], self.maa_w2[...])

        r, k, v = (
            keep(linear(y, kernel)).reshape(B, T, H, N)  # [B, T, D] -> [B, T, H, N]
            for y, kernel in ((x_r, self.receptance), (x_k, self.key), (x_v, self.value))
        )
        gate = keep(linear(x_g, self.gate))
        z_w = jnp.tanh(keep(linear(x_w, self.decay_w1)))
        w = decay_logits(z_w, self.decay_w2, self.decay[...])
        y = self.wkv(r, k, v, w.reshape(B, T, H, N), self.bonus[...])
        # Flat: kept by head, a TPU would lay it out anew. By itself: a GPU's XLA would run the WKV
        # twice, once into what is kept.
        y = keep(by_itself(y.reshape(B, T, D)))
        if self.key_norm is not None:
            y = self.key_norm(y)
        return keep(linear(self.head_norm(y, gate, H), self.output))
