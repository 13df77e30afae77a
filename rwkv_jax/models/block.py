"""One RWKV-6 block, for both towers. What differs between families of models is a `BlockSpec`."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from rwkv_jax.mesh import FSDP_AXIS, axis_sizes, keep_batch_split
from rwkv_jax.models.channel_mix import ChannelMix
from rwkv_jax.models.config import Remat
from rwkv_jax.models.layers import KEPT, Kernel, drop_path
from rwkv_jax.models.norms import LayerNorm
from rwkv_jax.models.spatial_mix import SpatialMix
from rwkv_jax.models.spec import BlockSpec
from rwkv_jax.models.token_shift import TokenShift
from rwkv_jax.wkv import platform

# By name, not `dots_saveable`: the WKV is no product to JAX, and products of low rank have wide
# results that are cheap to compute.
_POLICIES = {
    "block": None,
    "dots": jax.checkpoint_policies.save_only_these_names(KEPT),
}


class Block(nnx.Module):
    """x += drop_path(spatial_mix(LN1 x)); x += drop_path(channel_mix(LN2 x)).

    With `post_norm` the norm follows the mix; with `layer_scale` a learned factor a channel
    multiplies each branch.
    """

    def __init__(self, spec: BlockSpec, layer: int | Array, *, rngs: nnx.Rngs) -> None:
        self.norm1 = LayerNorm(spec.width)
        self.spatial_mix = SpatialMix(spec, layer, rngs=rngs)
        self.norm2 = LayerNorm(spec.width)
        self.channel_mix = ChannelMix(spec, layer, rngs=rngs)
        self.scale1 = _layer_scale(spec)
        self.scale2 = _layer_scale(spec)
        self.post_norm = spec.post_norm

    def __call__(
        self,
        x: Float[Array, "B T D"],
        shift: TokenShift,
        *,
        drop_rate: float | Float[Array, ""] = 0.0,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B T D"]:
        """`shift` is given here, not at construction: an image's depends on its grid.

        `key` None keeps every branch.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        branches = (
            (self.norm1, lambda y: self.spatial_mix(y, shift), self.scale1, keys[0]),
            (self.norm2, lambda y: self.channel_mix(y, shift), self.scale2, keys[1]),
        )
        for norm, mix, scale, branch_key in branches:
            y = norm(mix(x)) if self.post_norm else mix(norm(x))
            if scale is not None:
                y = y * scale[...].astype(y.dtype)
            if branch_key is not None:
                y = drop_path(y, drop_rate, branch_key)
            x = x + y
        return x


def _layer_scale(spec: BlockSpec) -> nnx.Param | None:
    if spec.layer_scale is None:
        return None
    return nnx.Param(jnp.full(spec.width, spec.layer_scale, jnp.float32))


def stack_blocks(spec: BlockSpec, *, rngs: nnx.Rngs) -> Block:
    """A `Block` each of whose parameters has a leading axis of `spec.depth`, for `run_blocks`."""

    def make(layer: Array, key: PRNGKeyArray) -> nnx.State:
        return nnx.state(Block(spec, layer, rngs=nnx.Rngs(key)))

    keys = jax.random.split(rngs.params(), spec.depth)
    state = jax.vmap(make)(jnp.arange(spec.depth), keys)
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: Block(spec, 0, rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, state)


def one_by_one(unroll: bool | None) -> bool:
    """Whether blocks are written out, where a configuration says so or nothing: on a GPU they are,
    which saves a tenth of a training step (docs/kernels.md).
    """
    return platform() == "gpu" if unroll is None else unroll


def run_blocks(
    blocks: Block,
    x: Float[Array, "B T D"],
    shift: TokenShift,
    *,
    max_drop_path: float = 0.0,
    key: PRNGKeyArray | None = None,
    remat: Remat = "none",
    unroll: bool | None = None,
) -> Float[Array, "B T D"]:
    """Runs stacked blocks one after the other: by `jax.lax.scan`, compiled once whatever the depth,
    or written out.

    Args:
        max_drop_path: the last block's rate; it grows linearly from 0 at the first.
        key: for drop path; None, or a rate of 0, compiles no random operations at all.
        remat: what the backward pass computes again. "block": all but each block's input. "dots":
            all but the results of matrix products and of the WKV, so only elementwise work and
            products of low rank.
        unroll: a program with every block written out in the place of a loop. It compiles longer,
            and what blocks leave for the backward pass is not copied to where all blocks' lies.
            None: as `one_by_one` says.
    """
    graphdef, *states = nnx.split(blocks, Kernel, ...)
    kernels, rest = states
    # All blocks' at once: one after the other, and again for the backward pass, takes longer.
    kernels = jax.tree.map(lambda kernel: kernel.astype(x.dtype), kernels)
    params = kernels, rest
    depth = jax.tree.leaves(rest)[0].shape[0]
    layers: tuple = (params,)
    if key is not None and max_drop_path > 0.0:
        rates = jnp.linspace(0.0, max_drop_path, depth)
        layers = (params, rates, jax.random.split(key, depth))

    def step(x, layer):
        params, *drop = layer
        rate, layer_key = drop or (0.0, None)
        x = nnx.merge(graphdef, *params)(x, shift, drop_rate=rate, key=layer_key)
        return keep_batch_split(x), None

    unroll = one_by_one(unroll)
    if unroll:
        # A jitted block closes over nothing: its masks, on which `checkpoint` fails where only some
        # of what it is given is kept apart, are inside.
        step = jax.jit(step)
    if remat != "none":
        # Tokens are kept apart, so that XLA does not merge the two computations. Weights would be
        # copied for it; but those that are gathered would be held until the backward pass. A loop
        # keeps all apart by itself.
        apart = (True, axis_sizes()[FSDP_AXIS] > 1) if unroll else False
        step = jax.checkpoint(step, prevent_cse=apart, policy=_POLICIES[remat])
    x = keep_batch_split(x)
    if not unroll:
        return jax.lax.scan(step, x, layers)[0]
    leaves, structure = jax.tree.flatten(layers)
    for layer in zip(*map(jnp.unstack, leaves), strict=True):
        x, _ = step(x, jax.tree.unflatten(structure, layer))
    return x
