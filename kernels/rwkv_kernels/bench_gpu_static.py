"""What the Hopper kernels take on paper: registers, spills and shared memory, without a GPU.

A block of 128 threads has up to 255 registers a thread; what does not fit is spilled to memory. How
many blocks share a multiprocessor follows: it has 65,536 registers and 228 KiB of shared memory.

Needs the extra `aot`: python -m rwkv_kernels.bench_gpu_static [--out FILE.md]
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import tqdm
from jax.sharding import NamedSharding, PartitionSpec

from rwkv_kernels.bench import save
from rwkv_kernels.bench_beside import PARTS, TOKENS, D, Part, both
from rwkv_kernels.gpu import topology
from rwkv_kernels.gpu.plan import TILE, Plan
from rwkv_kernels.gpu.tiling import Tiling, default
from rwkv_kernels.pallas_gpu import bi_wkv6, wkv6, words_of

SHAPES = (
    (256, 49, 8, 80),
    (256, 77, 10, 64),
    (256, 196, 8, 80),
    (8, 1024, 8, 80),
    (1, 16384, 8, 80),
)
MULTIPROCESSORS = 132
_THREADS = 128  # of a warpgroup
_REGISTERS = 65536  # of a multiprocessor
_SHARED_MEMORY = 228 * 1024  # of a multiprocessor


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What ptxas says of a kernel.

    Attributes:
      registers: of a thread.
      spill_stores, spill_loads: bytes of a thread.
      serialized: whether each `wgmma` is waited for before the next, since registers are short.
    """

    name: str
    registers: int
    spill_stores: int
    spill_loads: int
    serialized: bool


@dataclasses.dataclass(frozen=True)
class Case:
    """A call whose kernels are compiled.

    Attributes:
      shape: [B, T, H, N].
      causal: `wkv6`, not `bi_wkv6`.
      dtype: of r, k and v.
    """

    shape: tuple[int, ...]
    causal: bool = False
    dtype: str = "bfloat16"

    @property
    def tiling(self) -> Tiling:
        """With nothing known of a device."""
        B, T, H, _ = self.shape
        return default(B * H, -(-T // TILE))

    def __str__(self) -> str:
        causal = ", causal" if self.causal else ""
        return f"{list(self.shape)}{causal}{', float32' if self.dtype == 'float32' else ''}"


CASES = (
    *(Case(shape) for shape in SHAPES),
    Case((8, 1024, 8, 80), causal=True),
    *(Case(shape, dtype="float32") for shape in SHAPES[:3]),
    Case((8, 1024, 8, 80), causal=True, dtype="float32"),
)


def compile_call(case: Case, tiling: Tiling) -> None:
    """Compiles value and gradients for an H200; Mosaic prints what ptxas says where it is told."""
    mesh = topology.mesh()
    sharding = NamedSharding(mesh, PartitionSpec())

    def array(*shape: int, dtype="float32") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def value_and_gradients(r, k, v, w, u, g):
        def function(r, k, v, w, u):
            if case.causal:
                return wkv6(r, k, v, w, u, None, tiling=tiling)[0]
            return bi_wkv6(r, k, v, w, u, tiling=tiling)

        y, pullback = jax.vjp(function, r, k, v, w, u)
        return y, pullback(g)

    token, w, u = array(*case.shape, dtype=case.dtype), array(*case.shape), array(*case.shape[2:])
    with jax.set_mesh(mesh):
        jax.jit(value_and_gradients).lower(token, token, token, w, u, token).compile()


def compile_beside(part: Part, M: int) -> None:
    """As `compile_call`, of what kernels do beside the WKV, of so many tokens."""
    mesh = topology.mesh()
    sharding = NamedSharding(mesh, PartitionSpec())
    arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in part.every(M)]
    with jax.set_mesh(mesh):
        jax.jit(both(part.kernels, len(part.inputs(M)))).lower(*arrays).compile()


def compiled(case: Case, tiling: Tiling | None = None) -> list[Compiled]:
    """The kernels of value and gradients, each once; compiled in a process of its own."""
    what = (dataclasses.asdict(x) for x in (case, tiling or case.tiling))
    return _compiled_apart("--compile", *map(json.dumps, what))


def compiled_beside(title: str, tokens: int) -> list[Compiled]:
    """As `compiled`, of a part of `bench_beside.PARTS`."""
    return _compiled_apart("--compile-beside", title, str(tokens))


def _compiled_apart(*what: str) -> list[Compiled]:
    call = [sys.executable, "-m", "rwkv_kernels.bench_gpu_static", *what]
    environment = os.environ | {"MOSAIC_GPU_DUMP_PTXAS": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(what)}: {done.stderr[-2000:]}")
    kernels = said_by_ptxas(done.stdout + done.stderr)
    if not kernels:
        raise RuntimeError(
            f"{' '.join(what)}: Mosaic printed nothing of ptxas; it may be told another way"
        )
    return kernels


def said_by_ptxas(text: str) -> list[Compiled]:
    """The kernels in what `ptxas -v` prints, each once, by name."""
    found = re.findall(
        r"Compiling entry function '(\w+)_mosaic_gpu_kernel'.*?"
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        text,
        re.DOTALL,
    )
    one_by_one = set(re.findall(r"are serialized due to .*'(\w+)_mosaic_gpu_kernel'", text))
    kernels = {
        name: Compiled(name, int(registers), int(stores), int(loads), name in one_by_one)
        for name, stores, loads, registers in found
    }
    return [kernels[name] for name in sorted(kernels)]


@dataclasses.dataclass(frozen=True)
class Occupancy:
    """How a kernel fills a GPU: a block's warpgroups and bytes of shared memory, how many blocks
    fit on a multiprocessor, and how many there are.
    """

    warpgroups: int
    shared: int
    fit: int
    blocks: int


def occupancy(plan: Plan, heads: int, kernel: Compiled) -> Occupancy:
    """heads: B * H."""
    what = kernel.name.split("_")[-1].replace("segments", "states")
    shared, warpgroups = plan.shared_memory(what), plan.warpgroups(what)
    each = plan.tiles // warpgroups
    if what == "states":
        flows = (1 if plan.causal else 2) * (2 if "_both_" in kernel.name else 1)
        each = flows * plan.tiling.sweep_blocks * plan.tiling.sweep_segments
    # Barriers are a few bytes more, and each block takes 1 KiB for itself.
    registers = _THREADS * warpgroups * -(-kernel.registers // 8) * 8  # given out in eights
    fit = min(_SHARED_MEMORY // (shared + 1024 + 64), _REGISTERS // registers)
    return Occupancy(warpgroups, shared, fit, heads * each)


def row(case: Case, kernel: Compiled) -> str:
    B, T, H, N = case.shape
    plan = Plan(T, N, case.causal, case.tiling, words_of(case.dtype))
    how = occupancy(plan, B * H, kernel)
    cells = (
        case, kernel.name, how.warpgroups,
        kernel.registers, f"{kernel.spill_stores} / {kernel.spill_loads}",
        "yes" if kernel.serialized else "no",
        f"{how.shared / 1024:.0f} KiB", how.fit, how.blocks,
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    parser.add_argument("--compile", nargs=2, type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--compile-beside", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compile:
        case, tiling = options.compile
        compile_call(Case(**case), Tiling(**tiling))
        return
    if options.compile_beside:
        title, tokens = options.compile_beside
        compile_beside(PARTS[title], int(tokens))
        return
    lines = [
        "# Registers and shared memory of the Hopper kernels\n",
        f"For an H200, r, k, v bfloat16 where not said, w float32, jax {jax.__version__}. "
        "Registers and spilled "
        "bytes are a thread's, shared memory a block's; a warpgroup is 128 threads; products one "
        "by one: each `wgmma` is waited for, since registers are short; fit: how many blocks fit "
        f"on one of {MULTIPROCESSORS} multiprocessors.\n",
        "| [B, T, H, N] | kernel | warpgroups | registers | spilled, stores / loads "
        "| products one by one | shared memory | fit | blocks |",
        "|---" * 9 + "|",
    ]
    for case in tqdm.tqdm(CASES, unit="call"):
        lines += [row(case, x) for x in compiled(case)]
    lines += [
        f"\nBeside the WKV, {TOKENS[0]:,} tokens, D = {D}: {'; '.join(PARTS)}.\n",
        "| kernel | registers | spilled, stores / loads | products one by one |",
        "|---" * 4 + "|",
    ]
    for x in (x for title in PARTS for x in compiled_beside(title, TOKENS[0])):
        spilled = f"{x.spill_stores} / {x.spill_loads}"
        lines.append(
            f"| {x.name} | {x.registers} | {spilled} | {'yes' if x.serialized else 'no'} |"
        )
    print("\n".join(lines))
    if options.out:
        save(options.out, lines)


if __name__ == "__main__":
    main()
