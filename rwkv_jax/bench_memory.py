"""How much memory a training step takes on one device, by XLA's own account; nothing is run.

Each row of TABLES is a program that is compiled for a TPU chip that need not be there (extra
`aot`), or for this machine's CPU: python -m rwkv_jax.bench_memory [--device cpu] [--out FILE.md]
"""

import argparse
import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import tqdm

import rwkv_kernels.tpu.topology
from rwkv_jax.chips import chip_of
from rwkv_jax.config import DataConfig, RunConfig, override
from rwkv_jax.data.config import LoaderConfig
from rwkv_jax.evaluation.config import EvalConfig
from rwkv_jax.models import rwkv_clip_b32
from rwkv_jax.training.config import LossConfig
from rwkv_jax.training.losses import make_loss
from rwkv_jax.training.setup import set_up
from rwkv_kernels.bench import save

DEVICES: dict[str, Callable[[], Sequence[jax.Device]]] = {
    "v5e": lambda: list(rwkv_kernels.tpu.topology.mesh("v5e:2x2", devices=1).devices.flat),
    "cpu": lambda: jax.devices("cpu")[:1],
}
Program = Callable[[Sequence[jax.Device]], jax.stages.Lowered]


@dataclasses.dataclass(frozen=True)
class Row:
    """A program to compile, and what it is called in its table."""

    name: str
    program: Program


def training_step(*overrides: str) -> Program:
    """The step of RWKV-CLIP B/32 with 256 pairs (4096 over 16 devices), on one device.

    overrides: dotted ones, as train.py takes them.
    """
    config = RunConfig(
        model=rwkv_clip_b32(),
        data=DataConfig("none", "train", LoaderConfig(image_size=224, context_length=77)),
        batch_size=256,
        steps=1000,
        eval=EvalConfig(),
    )

    def lower(devices: Sequence[jax.Device]) -> jax.stages.Lowered:
        setup = set_up(override(config, overrides), devices)
        return setup.step.lower(setup.state_like, setup.batch_like)

    return lower


def loss_alone(config: LossConfig, pairs: int) -> Program:
    """The loss and its gradients by features of 640 channels and by scale and bias."""

    def lower(devices: Sequence[jax.Device]) -> jax.stages.Lowered:
        there = jax.sharding.SingleDeviceSharding(devices[0])
        struct = functools.partial(jax.ShapeDtypeStruct, sharding=there)
        features, number = struct((pairs, 640), jnp.float32), struct((), jnp.float32)
        logits = {"logit_scale": number, "logit_bias": number}
        labels = struct((pairs,), jnp.int32)
        loss = jax.value_and_grad(make_loss(config), argnums=(0, 1, 2), has_aux=True)
        return jax.jit(loss).lower(features, features, logits, labels)

    return lower


TABLES: dict[str, tuple[Row, ...]] = {
    "Micro-batches: B/32's step, 256 pairs on one device": tuple(
        Row(f"{n} of {256 // n}", training_step("--micro-batches", str(n))) for n in (1, 4, 16)
    ),
    "The loss alone, with its gradients": tuple(
        Row(
            f"{kind}, {form}, {pairs:,} pairs",
            loss_alone(LossConfig(kind=kind, form=form), pairs),
        )
        for pairs in (4_096, 32_768)
        for kind in ("softmax", "sigmoid")
        for form in ("full", "ring")
    ),
}


def memory_of(program: Program, devices: Sequence[jax.Device]) -> tuple[str, str]:
    """(temporaries, held at once) in MiB."""
    try:
        found = program(devices).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        needed = re.search(r"HLO temporaries \(([\d.]+)G\) exceeds", str(error))
        if needed is None:
            raise
        return f"{float(needed[1]) * 2**10:,.0f}", "does not fit"
    if found is None:
        raise RuntimeError(f"XLA keeps no account of memory on {devices[0].platform}")
    # What is donated is both argument and output.
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    temporary = found.temp_size_in_bytes
    chip = chip_of(devices[0].device_kind)
    # A compiler does not refuse every program that is too large.
    if chip is not None and temporary + held > chip.memory:
        return f"{temporary / 2**20:,.0f}", "does not fit"
    return f"{temporary / 2**20:,.0f}", f"{(temporary + held) / 2**20:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=DEVICES, default="v5e")
    parser.add_argument("--table", action="append", help="a part of a table's name; repeatable")
    parser.add_argument("--out", type=Path, help="also write the tables to this Markdown file")
    options = parser.parse_args()
    chosen = {
        name: rows
        for name, rows in TABLES.items()
        if not options.table or any(part.lower() in name.lower() for part in options.table)
    }
    if not chosen:
        parser.error(f"no table is named like {options.table}; there are {', '.join(TABLES)}")
    devices = DEVICES[options.device]()
    lines = [
        "# Memory of a training step\n",
        f"Compiled for one {devices[0].device_kind} by jax {jax.__version__}, not run; in MiB. What"
        " is held: arguments (parameters, optimizer state, batch), results and temporaries.",
    ]
    with tqdm.tqdm(total=sum(map(len, chosen.values())), unit="program") as bar:
        for table, rows in chosen.items():
            lines += [f"\n## {table}\n", "| | temporaries | held at once |", "|---|---|---|"]
            for row in rows:
                lines.append(f"| {row.name} | {' | '.join(memory_of(row.program, devices))} |")
                bar.update()
    print("\n".join(lines))
    if options.out:
        save(options.out, lines)


if __name__ == "__main__":
    main()
