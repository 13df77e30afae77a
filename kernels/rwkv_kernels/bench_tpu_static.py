"""What the TPU kernels cost on paper: the compiler's own schedule, without a TPU.

A TPU issues one bundle of instructions a cycle; libtpu can write down the bundles that it scheduled
for each kernel. Counted a sample, they are a lower bound of cycles: waits for memory come on top.

A tile whose decays are gentle takes one branch, any other tile another: each is counted by itself,
without the question which it is. Where a kernel takes eight samples a step, it turns them in fast
memory first and then loops over them; the loop's body stands once in the program. It is counted by
compiling the same kernel for one sample, and what is left over is divided by eight.

Needs the extra `aot`: python -m rwkv_kernels.bench_tpu_static [--chip v6e:2x2] [--out FILE.md]
"""

import argparse
import dataclasses
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import tqdm
from jax.sharding import NamedSharding, PartitionSpec

from rwkv_kernels.bench import save
from rwkv_kernels.tpu import ddlerp, gentle, head_norm, topology
from rwkv_kernels.tpu.backward import backward
from rwkv_kernels.tpu.ddlerp import Uses
from rwkv_kernels.tpu.forward import forward
from rwkv_kernels.tpu.plan import Plan, make_plan

SHAPES = ((49, 8, 80), (77, 10, 64), (196, 8, 80), (1024, 8, 80))  # T, H, N
DECAYS = ("gentle", "any")
UNITS = ("MXU", "XLU", "VALU", "VLOAD", "VSTORE")
BATCH = 8
KERNELS = ("forward", "backward")
BESIDE = ("head_norm_forward", "head_norm_backward", "ddlerp_backward")  # the WKV
ROWS, D, HEADS = 256, 640, 8


def compile_kernel(kernel: str, plan: Plan, chip: str, decays: str) -> None:
    """Compiles `forward` or `backward` of both directions; its bundles go where libtpu was told."""

    def choose(decay, edges, at_once, by_levels):
        del decay, edges
        return at_once() if decays == "gentle" else by_levels()

    lanes = plan.lanes
    sharding = NamedSharding(topology.mesh(chip, devices=1), PartitionSpec())

    def array(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    token = array(BATCH, plan.tokens, lanes.channels, dtype=jnp.bfloat16)
    w, u = array(BATCH, plan.tokens, lanes.channels), array(1, lanes.channels)
    state = array(BATCH, plan.spans, *plan.state_shape) if plan.spans > 1 else None

    def run(r, k, v, w, u, g, S, dR):
        if kernel == "forward":
            return forward(plan, r, k, v, w, u, S)
        return backward(plan, r, k, v, w, u, g, S, dR, None)

    with mock.patch.object(gentle, "choose", choose):
        jax.jit(run).lower(token, token, token, w, u, token, state, state).compile()


def compile_beside(kernel: str, chip: str) -> None:
    """As `compile_kernel`, of a kernel that surrounds the WKV, with a block of tokens."""
    sharding = NamedSharding(topology.mesh(chip, devices=1), PartitionSpec())

    def array(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    token, row = array(1, ROWS, D, dtype=jnp.bfloat16), array(1, D)
    uses = Uses(5, 32)
    z = array(1, ROWS, uses.count * uses.rank, dtype=jnp.bfloat16)
    function, inputs = {
        "head_norm_forward": (lambda *x: head_norm.forward(HEADS, 1e-5, *x), (token, row, row)),
        "head_norm_backward": (lambda *x: head_norm.backward(HEADS, 1e-5, *x), (token, row, token)),
        "ddlerp_backward": (
            lambda xx, z, maa, up, *g: ddlerp.backward(uses, xx, z, maa, up, g),
            (token, z, array(uses.count, D), array(uses.count, uses.rank, D), *[token] * 5),
        ),
    }[kernel]
    jax.jit(function).lower(*inputs).compile()


def count(kernel: str, plan: Plan, chip: str, decays: str) -> tuple[int, dict[str, float]]:
    """Bundles of the whole program, and each unit's share of the slots that they have for it."""
    shape = f"{plan.tokens},{plan.lanes.heads},{plan.lanes.head_size}"
    how = ["--shape", shape, "--samples", str(plan.samples), "--decays", decays]
    return _counted(kernel, chip, f"wkv6_{kernel}", *how)


def _counted(kernel: str, chip: str, name: str, *how: str) -> tuple[int, dict[str, float]]:
    """As `count`; name: the kernel's in libtpu's files."""
    with tempfile.TemporaryDirectory() as folder:
        options = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        call = [sys.executable, "-m", "rwkv_kernels.bench_tpu_static", "--compile", kernel]
        call += ["--chip", chip, *how]
        environment = os.environ | {"LIBTPU_INIT_ARGS": options, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{kernel} {' '.join(how)} for {chip}: {done.stderr[-2000:]}")
        bundles = _dumped(folder, f"*{name}*[0-9]-final_bundles.txt")
        slots = _dumped(folder, f"*{name}*-final_hlo-static-per-bundle-utilization.txt")
        lines = re.findall(r"^ *0x[0-9a-f]+", bundles.read_text(), re.MULTILINE)
        return len(lines), _shares(slots.read_text())


def _dumped(folder: str, pattern: str) -> Path:
    found = sorted(Path(folder).glob(pattern))
    if len(found) != 1:
        raise RuntimeError(
            f"libtpu wrote {len(found)} files {pattern}, not 1: this one may name its dumps anew; "
            "constraints.txt holds the version that this was written for."
        )
    return found[0]


def _shares(text: str) -> dict[str, float]:
    """Of the file's columns: what is used of what there is."""
    lines = text.splitlines()
    names = [name.strip() for name in lines[1].split(",")]
    room = [int(x) for x in lines[2].split()]
    used = [[int(x) for x in line.split()] for line in lines[4:] if line.strip()]
    sums = [sum(column) for column in zip(*used, strict=True)]
    return {
        name: total / (slots * len(used))
        for name, slots, total in zip(names, room, sums, strict=True)
        if name in UNITS
    }


def plan_for(chip: str, T: int, H: int, N: int) -> Plan:
    """Both directions in bfloat16, on a chip of that topology."""
    kind = topology.mesh(chip, devices=1).devices.item().device_kind
    return make_plan(T, H, N, jnp.bfloat16, causal=False, device_kind=kind)


def row(kernel: str, chip: str, T: int, H: int, N: int, decays: str) -> str:
    plan = plan_for(chip, T, H, N)
    one, shares = count(kernel, dataclasses.replace(plan, samples=1), chip, decays)
    turning = 0
    if plan.samples > 1:
        eight, _ = count(kernel, plan, chip, decays)
        turning = (eight - one) // plan.samples
    bundles = plan.spans * one + turning
    cells = (chip, f"[{T}, {H}, {N}]", kernel, decays, f"{bundles:,}", f"{turning:,}")
    return f"| {' | '.join(cells)} | {' | '.join(f'{shares[unit]:.0%}' for unit in UNITS)} |"


def row_beside(kernel: str, chip: str) -> str:
    bundles, shares = _counted(kernel, chip, kernel)
    cells = (chip, kernel, f"{bundles:,}", *(f"{shares[unit]:.0%}" for unit in UNITS))
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chip", action="append", help="a topology (default: v5e:2x2, v6e:2x2)")
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    parser.add_argument("--compile", choices=(*KERNELS, *BESIDE), help=argparse.SUPPRESS)
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    parser.add_argument("--samples", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--decays", choices=DECAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    chips = options.chip or ["v5e:2x2", "v6e:2x2"]
    if options.compile in BESIDE:
        compile_beside(options.compile, chips[0])
        return
    if options.compile:
        T, H, N = (int(x) for x in options.shape.split(","))
        plan = plan_for(chips[0], T, H, N)
        plan = dataclasses.replace(plan, samples=options.samples)
        compile_kernel(options.compile, plan, chips[0], options.decays)
        return
    lines = [
        "# Bundles of the TPU kernels\n",
        f"Both directions, bfloat16 (w float32), jax {jax.__version__}. Bundles a sample of all "
        "heads, those of turning samples among them, and how full each unit's slots are over the "
        "body.\n",
        f"| chip | [T, H, N] | kernel | decays | bundles | turning | {' | '.join(UNITS)} |",
        "|---" * (6 + len(UNITS)) + "|",
    ]
    jobs = [
        (kernel, chip, *shape, decays)
        for chip in chips
        for shape in SHAPES
        for kernel in KERNELS
        for decays in DECAYS
    ]
    lines += [row(*job) for job in tqdm.tqdm(jobs, unit="kernel")]
    lines += [
        "\n## What surrounds the WKV\n",
        f"A block of {ROWS} tokens of {D} channels, {HEADS} heads or five uses of rank 32.\n",
        f"| chip | kernel | bundles | {' | '.join(UNITS)} |",
        "|---" * (3 + len(UNITS)) + "|",
    ]
    beside = [(kernel, chip) for chip in chips for kernel in BESIDE]
    lines += [row_beside(*job) for job in tqdm.tqdm(beside, unit="kernel")]
    print("\n".join(lines))
    if options.out:
        save(options.out, lines)


if __name__ == "__main__":
    main()
