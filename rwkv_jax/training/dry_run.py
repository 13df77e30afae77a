"""A run on paper: the step that training takes, compiled for any topology and counted.

Nothing is trained or allocated, and no data is read. What is measured is the compiled program
(`rwkv_jax.hlo`); what is published are the chip's peaks (`rwkv_jax.chips`). The bound that follows
is a floor of the step's time: all matrix products at peak, or all memory traffic at peak, or all
messages with every link busy, whichever takes longest, the others hidden behind it. A real step
takes longer, and starting, evaluating and saving come on top.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax

from rwkv_jax.chips import Chip
from rwkv_jax.config import ConfigError, RunConfig
from rwkv_jax.hlo import Cost, kept_bytes, parse, program_cost
from rwkv_jax.models.flops import ModelFlops, train_flops
from rwkv_jax.topology import Topology, open_topology
from rwkv_jax.training.setup import Setup, set_up


class DoesNotFitError(RuntimeError):
    """The compiler found no way to fit the step into a device's memory."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
        parameters: its part of them.
        optimizer: its part of the optimizer's state, and of the parameters' average if one is kept.
        batch: its part of a batch.
        activations: most that the forward pass leaves for the backward pass at any moment.
        temporaries: all that the step allocates beside its arguments, activations included.
        total: arguments, results that do not take their place, temporaries and the program.
    """

    parameters: int
    optimizer: int
    batch: int
    activations: float
    temporaries: int
    total: int


@dataclasses.dataclass(frozen=True)
class Bound:
    """Seconds that a step takes at least, by each resource alone at its published peak."""

    products: float
    memory: float
    network: float

    @property
    def seconds(self) -> float:
        return max(self.products, self.memory, self.network)

    @property
    def name(self) -> str:
        names = {"compute": self.products, "memory": self.memory, "network": self.network}
        return max(names, key=lambda name: names[name])


@dataclasses.dataclass(frozen=True)
class DryRun:
    """What a step of a run costs on a topology.

    Attributes:
        mesh: sizes of its axes.
        cost: of one device and one step.
        flops: model FLOPs of all devices and one step.
        bound: None where the chip has no published peaks.
    """

    config: RunConfig
    topology: Topology
    mesh: dict[str, int]
    memory: Memory
    cost: Cost
    flops: ModelFlops
    bound: Bound | None
    compile_seconds: float

    @property
    def fits(self) -> bool | None:
        """Whether a device's memory holds it; None where that is unknown."""
        return (
            None if self.topology.chip is None else self.memory.total <= self.topology.chip.memory
        )

    @property
    def best_mfu(self) -> float | None:
        """The MFU of a step that takes no longer than its bound."""
        chip = self.topology.chip
        if chip is None or self.bound is None:
            return None
        peak = chip.flops * len(self.topology.devices)
        return self.flops.total / (peak * self.bound.seconds)

    @property
    def hours(self) -> float | None:
        """The whole recipe at its bound."""
        return None if self.bound is None else self.config.steps * self.bound.seconds / 3600


def dry_run(
    config: RunConfig, topology: str | Topology, say: Callable[[str], None] = print
) -> DryRun:
    """Compiles the run's step for a topology (see `open_topology`) and counts what it does.

    Args:
        say: is told what is going on: compiling takes minutes.

    Raises:
        TopologyError: an unknown topology, or no compiler for it.
        ConfigError: the mesh does not fit the topology, or the batch or a parameter the mesh.
        DoesNotFitError: the compiler needs more memory than a device has.
    """
    devices = open_topology(topology) if isinstance(topology, str) else topology
    try:
        setup = set_up(config, devices.devices)
    except ValueError as error:
        raise ConfigError(f"{error} (topology {devices.name})") from error
    say(f"compiling the step for {len(devices.devices)} devices of {devices.name}: minutes")
    began = time.monotonic()
    compiled = compile_step(setup, devices)
    seconds = time.monotonic() - began
    program = parse(compiled.as_text() or "")
    cost = program_cost(program)
    memory = _memory(setup, compiled.memory_analysis(), kept_bytes(program))
    return DryRun(
        config=config,
        topology=devices,
        mesh=dict(setup.mesh.shape),
        memory=memory,
        cost=cost,
        flops=train_flops(config.model, config.batch_size, frozen=config.optimizer.frozen),
        bound=None if devices.chip is None else bound(cost, devices.chip),
        compile_seconds=seconds,
    )


def compile_step(setup: Setup, topology: Topology) -> jax.stages.Compiled:
    """The program of one step for each device.

    Raises:
        DoesNotFitError: the compiler needs more memory than a device has.
    """
    lowered = setup.step.lower(setup.state_like, setup.batch_like)
    try:
        return lowered.compile(compiler_options=dict(topology.compiler_options))
    except jax.errors.JaxRuntimeError as error:
        said = str(error).strip().splitlines()[0]
        if "RESOURCE_EXHAUSTED" not in said:
            raise
        raise DoesNotFitError(
            f"a device of {topology.name} has too little memory for this step"
            f" ({said.removeprefix('RESOURCE_EXHAUSTED: ')[:200]}): take more devices, a smaller"
            " batch_size, recomputed blocks, or more micro-batches"
        ) from error


def bound(cost: Cost, chip: Chip) -> Bound:
    """The step's time at least, by the chip's published peaks.

    A permutation sends to one neighbour, over one link; all else may use all links. A product in
    float32 takes as long as its passes in bfloat16 (`rwkv_jax.hlo.products.passes`).
    """
    permuted = cost.sent_bytes("collective-permute")
    network = permuted / chip.link_bandwidth + (cost.sent_bytes() - permuted) / chip.egress
    return Bound(cost.passes_flops / chip.flops, cost.memory_bytes / chip.memory_bandwidth, network)


def shard_bytes(tree: Any) -> int:
    """Bytes of one device's parts of a tree of ShapeDtypeStructs with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _memory(setup: Setup, counted: Any, activations: float) -> Memory:
    results = counted.output_size_in_bytes - counted.alias_size_in_bytes
    return Memory(
        parameters=shard_bytes(setup.state_like.params),
        optimizer=shard_bytes((setup.state_like.opt_state, setup.state_like.ema)),
        batch=shard_bytes(setup.batch_like),
        activations=activations,
        temporaries=counted.temp_size_in_bytes,
        total=counted.argument_size_in_bytes
        + results
        + counted.temp_size_in_bytes
        + counted.generated_code_size_in_bytes,
    )


def table(run: DryRun) -> str:
    """What a person wants to know, in lines."""
    memory, cost, chip, bound_ = run.memory, run.cost, run.topology.chip, run.bound
    n = len(run.topology.devices)
    axes = " x ".join(f"{axis} {size}" for axis, size in run.mesh.items())
    name = chip.name if chip else run.topology.devices[0].device_kind
    lines = [
        f"{run.topology.name}: {n} x {name}, mesh {axes}; batch {run.config.batch_size},"
        f" {run.config.batch_size / n:g} pairs a device; compiled in {run.compile_seconds:.0f} s",
        "",
        "memory a device",
        f"  parameters           {_gb(memory.parameters)}",
        f"  optimizer            {_gb(memory.optimizer)}",
        f"  batch                {_gb(memory.batch)}",
        f"  temporaries          {_gb(memory.temporaries)}",
        f"    of which activations kept for the backward pass {_gb(memory.activations)}",
        f"  all, with program    {_gb(memory.total)}" + _fits(run),
        "",
        "a step, each device",
        f"  products             {cost.flops / 1e12:10.3f} TFLOP (the model's share:"
        f" {run.flops.total / n / 1e12:.3f})",
        f"  memory traffic       {_gb(cost.memory_bytes)}",
    ]
    for kind, (runs, sent) in sorted(_by_kind(cost).items()):
        lines.append(f"  {kind:<20} {_gb(sent)} sent, in {runs} messages")
    if not cost.collectives:
        lines.append("  no messages between devices")
    if cost.unknown_loops:
        lines.append(f"  counted once, runs unknown: {', '.join(cost.unknown_loops)}")
    if chip is None or bound_ is None:
        return "\n".join([*lines, "", f"no published peaks of {name}: no bound"])
    lines += [
        "",
        f"at least, by {chip.name}'s published peaks ({chip.source})",
        f"  products             {_ms(bound_.products)} at {chip.flops / 1e12:.0f} TFLOP/s",
        f"  memory               {_ms(bound_.memory)} at {chip.memory_bandwidth / 1e9:.0f} GB/s",
        f"  network              {_ms(bound_.network)} at {chip.links} x"
        f" {chip.link_bandwidth / 1e9:.0f} GB/s",
        f"  a step               {_ms(bound_.seconds)}: bound by {bound_.name};"
        f" {run.config.batch_size / bound_.seconds:,.0f} images/s",
        f"  best MFU             {run.best_mfu:10.1%}",
        f"  the whole recipe     {run.hours:10.1f} hours ({run.config.steps:,} steps)",
    ]
    return "\n".join(lines)


def _by_kind(cost: Cost) -> dict[str, tuple[int, float]]:
    kinds: dict[str, tuple[int, float]] = {}
    for x, count in cost.collectives.items():
        runs, sent = kinds.get(x.kind, (0, 0.0))
        kinds[x.kind] = (runs + count, sent + x.sent * count)
    return kinds


def _fits(run: DryRun) -> str:
    if run.topology.chip is None:
        return ""
    of = f" of {run.topology.chip.memory / 1e9:.0f} GB"
    return of + (": fits" if run.fits else ": does not fit")


def _gb(size: float) -> str:
    return f"{size / 1e9:10.3f} GB"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:10.2f} ms"
