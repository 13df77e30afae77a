"""Channel mix: RWKV's feed-forward half. The second gate and the squared ReLU are its own."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rwkv_jax.models.layers import Kernel, keep, linear
from rwkv_jax.models.norms import LayerNorm
from rwkv_jax.models.spec import BlockSpec
from rwkv_jax.models.token_shift import TokenShift


class ChannelMix(nnx.Module):
    """sigmoid(Wr x_r) * Wv(relu(Wk x_k)^2), x_r and x_k interpolated with the shifted token.

    Source: RWKV-6 (arXiv 2404.05892), section 4.
    """

    def __init__(self, spec: BlockSpec, layer: int | Array, *, rngs: nnx.Rngs) -> None:
        D, hidden, init = spec.width, spec.hidden, spec.inits
        self.mix_k = nnx.Param(init.channel_mix(layer, spec.depth, D))
        self.mix_r = nnx.Param(init.channel_mix(layer, spec.depth, D))
        self.key = Kernel(init.channel_key(rngs.params(), (D, hidden)))
        self.receptance = Kernel(init.channel_receptance(rngs.params(), (D, D)))
        self.value = Kernel(init.channel_value(rngs.params(), (hidden, D)))
        self.key_norm = LayerNorm(hidden) if spec.key_norm else None
        self.interpolate = spec.interpolate

    def __call__(self, x: Float[Array, "B T D"], shift: TokenShift) -> Float[Array, "B T D"]:
        shifted = shift(x)
        x_k = self.interpolate(x, shifted, self.mix_k[...].astype(x.dtype))
        x_r = self.interpolate(x, shifted, self.mix_r[...].astype(x.dtype))
        k = squared_relu(linear(x_k, self.key))
        if self.key_norm is not None:
            k = self.key_norm(k)
        return jax.nn.sigmoid(keep(linear(x_r, self.receptance))) * keep(linear(k, self.value))


@jax.custom_vjp
def squared_relu(x: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """relu(x)^2 in x's dtype, whose gradient is twice the root of what it gives: x, as wide as
    anything in a block, need not be kept beside that, nor the square be computed again.

    Source: Primer (arXiv 2109.08668), section 4.1.
    """
    return jnp.square(jax.nn.relu(x))


def _forward(x):
    y = keep(squared_relu(x))
    return y, y


def _backward(y, g):
    return (2.0 * jnp.sqrt(y) * g,)


squared_relu.defvjp(_forward, _backward)
