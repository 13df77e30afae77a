"""`BlockSpec`: all that differs between the blocks of two models, as values and functions."""

import dataclasses
from collections.abc import Callable

from jaxtyping import Array, Float

from rwkv_jax.models import inits
from rwkv_jax.wkv import Wkv

Interpolate = Callable[
    [Float[Array, "B T D"], Float[Array, "B T D"], Float[Array, "D"]], Float[Array, "B T D"]
]


@dataclasses.dataclass(frozen=True)
class BlockInits:
    """Initial values by parameter. `lora` are the low-rank pairs behind token mix and decay."""

    receptance: inits.Init
    key: inits.Init
    value: inits.Init
    gate: inits.Init
    output: inits.Init
    lora_down: inits.Init
    lora_up: inits.Init
    head_norm_scale: Callable[[inits.Layer, int], Array]  # (layer, depth) -> scalar
    channel_mix: Callable[[inits.Layer, int, int], Array]  # (layer, depth, width) -> [D]
    channel_key: inits.Init
    channel_receptance: inits.Init
    channel_value: inits.Init


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """One family of RWKV-6 blocks."""

    width: int
    heads: int
    hidden: int  # of the channel mix
    depth: int
    wkv: Wkv
    interpolate: Interpolate  # channel mix: (token, shifted token, mix) -> input
    head_norm_eps: float
    inits: BlockInits
    layer_scale: float | None = None
    post_norm: bool = False
    key_norm: bool = False
    mix_rank: int = 32
    decay_rank: int = 64


def by_own_share(x: Array, shifted: Array, mix: Array) -> Array:
    """`mix` is the share of the token itself (Vision-RWKV)."""
    return x * mix + shifted * (1.0 - mix)


def by_shifted_share(x: Array, shifted: Array, mix: Array) -> Array:
    """`mix` is the share of the shifted token (RWKV-6)."""
    return x + (shifted - x) * mix
