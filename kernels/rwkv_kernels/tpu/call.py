"""What the kernels' calls have in common: how tokens come in, and what the compiler is told."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from rwkv_kernels.launch import launch
from rwkv_kernels.reference import log_decay
from rwkv_kernels.tpu import states, tile
from rwkv_kernels.tpu.lanes import LANES, SUBLANES, round_up
from rwkv_kernels.tpu.levels import Level, to_rows
from rwkv_kernels.tpu.plan import LEAST_LIMIT, Plan
from rwkv_kernels.tpu.tile import Tile
from rwkv_kernels.tpu.turn import from_samples, to_samples


@dataclasses.dataclass(frozen=True)
class Span:
    """A step of the grid: which tokens it holds, and how to read them.

    Attributes:
      plan: the static shape.
      index: which span of the sequence this is; counted from the left.
    """

    plan: Plan
    index: int | Array

    def tile(self, i: int) -> Tile:
        return Tile(self.plan.lanes, self.plan.tiles[i][1], self.plan.causal)

    def rows(self, i: int) -> slice:
        start, rows = self.plan.tiles[i]
        return slice(start, start + rows)

    def load(self, ref, i: int) -> Float[Array, "R C"]:
        """The tokens of tile i in float32; those beyond the sequence hold anything: 0."""
        x = ref[0, self.rows(i), :].astype(jnp.float32)
        inside = self._inside(i)
        return x if inside is None else jnp.where(inside, x, 0)

    def load_log_decay(self, ref, i: int) -> Float[Array, "R C"]:
        """log d, 0 for tokens beyond the sequence: they neither decay nor have a gradient."""
        x = log_decay(ref[0, self.rows(i), :].astype(jnp.float32))
        inside = self._inside(i)
        return x if inside is None else jnp.where(inside, x, 0)

    def _inside(self, i: int) -> Array | None:
        plan, (start, rows) = self.plan, self.plan.tiles[i]
        if plan.tokens % plan.span == 0 or (plan.spans == 1 and start + rows <= plan.tokens):
            return None
        token = self.index * plan.span + start + lax.broadcasted_iota(jnp.int32, (rows, 1), 0)
        return token < plan.tokens


@dataclasses.dataclass(frozen=True)
class Edges:
    """The products of decays from a tile's tokens to its edges, and across it."""

    before: Float[Array, "R C"]
    after: Float[Array, "R C"]
    total: Float[Array, "1 C"]

    @classmethod
    def of(cls, level: Level) -> "Edges":
        return cls(to_rows(level.before), to_rows(level.after), level.total[0, :1])


def edges(t: Tile, decay: Float[Array, "R C"]) -> Edges:
    return Edges.of(tile.edges(t, decay))


@dataclasses.dataclass(frozen=True)
class Specs:
    """How arrays are cut for the grid (batch, span)."""

    plan: Plan
    leftwards: bool  # the order in which spans come

    def span(self, s):
        return self.plan.spans - 1 - s if self.leftwards else s

    def tokens(self, array) -> "Operand":
        """[B, T, C]; kernels that work on several samples see it as [T, B, C]."""
        plan, C = self.plan, self.plan.lanes.channels
        if plan.samples == 1:
            spec = pl.BlockSpec((1, plan.span, C), lambda b, s: (b, self.span(s), 0))
        else:
            spec = pl.BlockSpec((plan.span, plan.samples, C), lambda b, s: (self.span(s), b, 0))
        return Operand(array, spec, tokens=True)

    @property
    def bonus(self) -> pl.BlockSpec:
        """[1, C], the same for all."""
        return pl.BlockSpec((1, self.plan.lanes.channels), lambda b, s: (0, 0))

    def bonus_gradient(self, array) -> "Operand":
        """[B, 1, C], summed up over spans."""
        block = (self.plan.samples, 1, self.plan.lanes.channels)
        return Operand(array, pl.BlockSpec(block, lambda b, s: (b, 0, 0)), by_sample=True)

    @property
    def mask(self) -> pl.BlockSpec:
        """[P, 128, 128], the same for all."""
        return pl.BlockSpec(self.plan.state_shape, lambda b, s: (0, 0, 0))

    @property
    def state(self) -> pl.BlockSpec:
        """[B, P, 128, 128], one a sequence."""
        return pl.BlockSpec((1, *self.plan.state_shape), lambda b, s: (b, 0, 0, 0))

    @property
    def states(self) -> pl.BlockSpec:
        """[B, spans, P, 128, 128]"""
        return pl.BlockSpec((1, 1, *self.plan.state_shape), lambda b, s: (b, self.span(s), 0, 0, 0))


@dataclasses.dataclass(frozen=True)
class Operand:
    """An array, and how it is cut.

    Attributes:
      array: a jax.Array, or for a result its jax.ShapeDtypeStruct.
      spec: its blocks.
      tokens: whether it is [B, T, C], to be turned where a kernel works on several samples.
      by_sample: whether the leading axis of its block counts a step's samples as it is.
    """

    array: Any
    spec: pl.BlockSpec
    tokens: bool = False
    by_sample: bool = False


def kernel_call(
    body: Callable[..., None],
    plan: Plan,
    batch: int,
    inputs: dict[str, Operand],
    outputs: dict[str, Operand],
    scratch: Mapping[str, tuple[int, ...]],
    *,
    name: str,
    products: int,
    interpret,
) -> dict[str, Array]:
    """Runs `body(**refs)` over the grid (batch, span); refs come by the names given here.

    With several samples a step, `body` runs once a sample, and its refs of tokens and of operands
    `by_sample` are that sample's: tokens are turned from [T, samples, C] to [samples, T, C] in fast
    memory and back.

    products: how many products of all tokens with a tile of others it makes, or as many with a
    head's state, if decays are gentle: the compiler's estimate of cost follows.
    """
    turned = {
        name: pltpu.VMEM((plan.samples, plan.span, plan.lanes.channels), jnp.float32)
        for name, x in (inputs | outputs).items()
        if x.tokens and plan.samples > 1
    }
    names = [*inputs, *outputs, *scratch, *(f"turned {name}" for name in turned)]

    def kernel(*all_refs):
        refs = dict(zip(names, all_refs, strict=True))
        by_sample = {name: refs.pop(f"turned {name}") for name in turned}
        if not turned:
            body(**refs)
            return
        for name in (name for name in turned if name in inputs):
            to_samples(refs[name], by_sample[name])
        by_sample |= {name: refs[name] for name, x in outputs.items() if x.by_sample}

        def one(sample, _):
            body(**refs | {name: x.at[pl.ds(sample, 1)] for name, x in by_sample.items()})

        lax.fori_loop(0, plan.samples, one, None)
        for name in (name for name in turned if name in outputs):
            from_samples(by_sample[name], refs[name])

    def turn(x: Operand) -> Array:
        return jnp.swapaxes(x.array, 0, 1) if x.tokens and turned else x.array

    def result(x: Operand) -> jax.ShapeDtypeStruct:
        B, *rest = x.array.shape
        shape = (rest[0], B, *rest[1:]) if x.tokens and turned else x.array.shape
        return jax.ShapeDtypeStruct(shape, x.array.dtype)

    operands = (*inputs.values(), *outputs.values())
    moved = [x.array for x in operands]
    blocks = sum(_bytes(x.spec.block_shape, x.array.dtype.itemsize) for x in operands)
    held = [pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()] + list(turned.values())
    # Each block twice: one is copied while another is computed with. No more than is needed: what
    # XLA holds in VMEM across the call is lost to it.
    vmem = 2 * blocks + sum(_bytes(x.shape, 4) for x in held) + plan.working_bytes
    limit = min(max(vmem, LEAST_LIMIT), plan.vmem)
    tokens = batch * plan.spans * plan.span
    call = pl.pallas_call(
        kernel,
        grid=(-(-batch // plan.samples), plan.spans),
        in_specs=[x.spec for x in inputs.values()],
        out_specs=[x.spec for x in outputs.values()],
        out_shape=[result(x) for x in outputs.values()],
        scratch_shapes=held,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=limit
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * tokens * plan.lanes.tile * plan.lanes.channels,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in moved),
            transcendentals=2 * tokens * plan.lanes.channels,
        ),
        interpret=interpret,
        name=name,
    )
    results = launch(call, *(turn(x) for x in inputs.values()))
    return {
        name: jnp.swapaxes(y, 0, 1) if x.tokens and turned else y
        for (name, x), y in zip(outputs.items(), results, strict=True)
    }


def _bytes(shape: Any, itemsize: int) -> int:
    """Of an array in VMEM, in whole tiles of 8 x 128."""
    *leading, rows, lanes = shape
    return math.prod(leading) * round_up(rows, SUBLANES) * round_up(lanes, LANES) * itemsize


def state_mask(plan: Plan, specs: Specs) -> dict[str, Operand]:
    return {"mask": Operand(states.mask(plan.lanes), specs.mask)}
