"""Times of the WKV on a GPU beside its roofline and its rivals; `make gpu-check` runs it.

Times are the GPU's own (CUPTI), medians of calls after one that is not timed. The roofline is what
memory allows: each input and output crosses it once. Rivals in PyTorch are timed by
`bench_gpu_torch.py` in an environment of their own, whose file is given here.

All is compiled first, side by side, since that takes longest; then timed with nothing beside it.
The page is written again after each shape: what was measured is kept, whatever comes after.

Needs a GPU: python -m rwkv_kernels.bench_gpu [--rivals FILE.json] [--shape NAME] [--out FILE.md]
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tqdm
from jax.experimental.mosaic.gpu import profiler

from rwkv_kernels.api import Call, servable
from rwkv_kernels.bench import forward, forward_backward, machine, save
from rwkv_kernels.platforms import device_kind, platform
from rwkv_kernels.shapes import WkvShape

SHAPES = (
    WkvShape("image, B/32", 1024, 49, 8, 80),
    WkvShape("text", 1024, 77, 10, 64),
    WkvShape("image, B/16", 1024, 196, 8, 80),
    WkvShape("long", 16, 1024, 8, 80),
    WkvShape("longest", 1, 16384, 8, 80),
)
# What is timed, r, k and v in which dtype.
CASES = (
    *((shape, "bfloat16") for shape in SHAPES),
    *((shape, "float32") for shape in SHAPES[:4]),
)
# Bytes a second from memory, by data sheet: NVIDIA H200 SXM, H100 SXM and PCIe.
BANDWIDTH = {"H200": 4.8e12, "H100 80GB HBM3": 3.35e12, "H100 PCIe": 2.0e12}
# `associative_scan` keeps too much for these shapes.
_NAMES = ("pallas_gpu", "chunked", "reference")
# `reference` keeps a state of every step for its gradient; each step is kernels of its own, and the
# profiler keeps a record of each.
_MOST_STATE_BYTES, _MOST_STEPS = 20e9, 4096
# Added to w, decays are 0.92 down to 2e-9: the Hopper kernels take the levels (`gpu/gentle.py`).
_STRONGER = 3.5


def crossing_bytes(shape: WkvShape, dtype: str = "bfloat16") -> tuple[int, int]:
    """Bytes of inputs and outputs of forward, and of backward alone; w and dw float32."""
    numbers, size = shape.B * shape.T * shape.H * shape.N, jnp.dtype(dtype).itemsize
    return numbers * (4 * size + 4), numbers * (4 * size + 4 + 3 * size + 4)


def roofline(shape: WkvShape, dtype: str = "bfloat16") -> tuple[float, float]:
    """Milliseconds that memory takes for forward and for backward; NaN for an unknown GPU."""
    kind = device_kind()
    bandwidth = next((rate for name, rate in BANDWIDTH.items() if name in kind), float("nan"))
    once, back = crossing_bytes(shape, dtype)
    return 1e3 * once / bandwidth, 1e3 * back / bandwidth


def arguments(shape: WkvShape, dtype: str = "bfloat16") -> list[jax.Array]:
    """r, k, v, w, u and a gradient of y, as `bench.arguments`, but made on the device."""
    keys = jax.random.split(jax.random.key(0), 6)
    r, k, v, g = (jax.random.normal(key, shape.tokens, dtype) for key in keys[:4])
    w = jax.random.uniform(keys[4], shape.tokens, jnp.float32, -6, -0.5)
    u = 0.5 * jax.random.normal(keys[5], (shape.H, shape.N), dtype)
    return [r, k, v, w, u, g]


@dataclasses.dataclass(frozen=True)
class Time:
    """Milliseconds of a call, and of each of its kernels of a name, added up."""

    total: float
    kernels: dict[str, float]


def timed(compiled, inputs, calls: int) -> Time:
    """compiled: a function that is compiled already."""
    jax.block_until_ready(compiled(*inputs))
    _, found = profiler.measure(compiled, iterations=calls, aggregate=False)(*inputs)
    if not found:
        raise RuntimeError("the profiler saw no kernel run on the GPU")
    each: list[dict[str, float]] = [collections.defaultdict(float) for _ in found]
    for of_call, kernels in zip(each, found, strict=True):
        for name, time in kernels:
            of_call[name.removesuffix("_mosaic_gpu_kernel")] += time
    names = sorted(set().union(*each))
    median = {name: statistics.median(of_call[name] for of_call in each) for name in names}
    return Time(statistics.median(sum(of_call.values()) for of_call in each), median)


def implementations(shape: WkvShape, dtype: str) -> list[str]:
    """Those that serve a shape here, in the memory there is."""
    call = Call("bi_wkv6", platform(), shape.tokens, jnp.dtype(dtype), device_kind())
    states = 4 * shape.B * shape.T * shape.H * shape.N**2
    return [
        name
        for name in servable(call)
        if name in _NAMES
        and (name != "reference" or (states < _MOST_STATE_BYTES and shape.T <= _MOST_STEPS))
    ]


def compile_all(cases: Sequence[tuple[WkvShape, str]]) -> dict[tuple[str, str, str, int], Any]:
    """By shape's name, dtype, implementation, and how many inputs: five forward, six for both. The
    error in the place of what does not compile.
    """

    def compiled(job: tuple[WkvShape, str, str, int]):
        shape, kept, name, count = job
        token, w, u = (
            jax.ShapeDtypeStruct(size, dtype)
            for size, dtype in (
                (shape.tokens, kept), (shape.tokens, jnp.float32), ((shape.H, shape.N), kept)
            )
        )  # fmt: skip
        function = forward(name) if count == 5 else forward_backward(name)
        inputs = (token, token, token, w, u, token)[:count]
        try:
            return jax.jit(function).lower(*inputs).compile()
        except jax.errors.JaxRuntimeError as error:  # others still have their row
            return error

    jobs = [
        (*case, name, count)
        for case in cases
        for name in implementations(*case)
        for count in (5, 6)
    ]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = tqdm.tqdm(pool.map(compiled, jobs), "compile", len(jobs), unit="program")
        pairs = zip(jobs, found, strict=True)
        return {(x.name, of, name, count): program for (x, of, name, count), program in pairs}


def table(
    shape: WkvShape, dtype: str, programs, rivals: dict[str, list[float]], calls: int
) -> list[str]:
    once, back = roofline(shape, dtype)
    inputs = arguments(shape, dtype)
    stronger = [*inputs[:3], inputs[3] + _STRONGER, *inputs[4:]]
    times: dict[str, list[Time]] = {}
    left_out = []
    named = []
    for name in implementations(shape, dtype):
        named.append((name, name, inputs))
        if name == "pallas_gpu" and dtype == "bfloat16":  # float32 knows levels alone
            named.append((f"{name}, strong decays", name, stronger))
    for row, name, given in named:
        try:
            of_name = [programs[shape.name, dtype, name, n] for n in (5, 6)]
            for program in of_name:
                if isinstance(program, Exception):
                    raise program
            times[row] = [
                timed(program, given[:n], calls) for n, program in zip((5, 6), of_name, strict=True)
            ]
        except jax.errors.JaxRuntimeError as error:
            left_out.append(f"\nLeft out: {row}, {str(error).splitlines()[0]}")
    rows = {name: (f.total, both.total) for name, (f, both) in times.items()}
    rows |= {name: (found[0], found[1]) for name, found in rivals.items()}
    lines = [
        f"\n### {shape.name}: {list(shape.tokens)}, {dtype}\n",
        "| | forward, ms | backward, ms | both, ms | over the roofline | `pallas_gpu` faster by |",
        "|---|---|---|---|---|---|",
        f"| roofline | {once:.3f} | {back:.3f} | {once + back:.3f} | 1 | |",
    ]
    ours = rows.get("pallas_gpu")
    for name, (f, both) in rows.items():
        faster = "" if ours is None else f"{f / ours[0]:.1f} / {both / ours[1]:.1f}"
        lines.append(
            f"| {name} | {f:.3f} | {both - f:.3f} | {both:.3f} | {both / (once + back):.1f} "
            f"| {faster} |"
        )
    for what, time in zip(("forward", "both"), times.get("pallas_gpu", ()), strict=False):
        parts = ", ".join(f"{name} {ms:.3f}" for name, ms in time.kernels.items())
        lines.append(f"\nKernels, {what}: {parts}.")
    return lines + left_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=20, help="timed calls (default: 20)")
    parser.add_argument("--shape", action="append", help="a part of a shape's name; repeatable")
    parser.add_argument("--rivals", type=Path, help="what bench_gpu_torch.py wrote")
    parser.add_argument("--out", type=Path, help="also write the tables to this Markdown file")
    options = parser.parse_args()
    if options.calls < 2:
        parser.error(f"--calls must be at least 2 to have a median, got {options.calls}")
    cases = [x for x in CASES if any(part in x[0].name for part in options.shape or [""])]
    if not cases:
        names = ", ".join(repr(x.name) for x in SHAPES)
        parser.error(f"--shape {options.shape} is in none of the names: {names}")
    if platform() != "gpu":
        sys.exit(f"This measures a GPU, and JAX found {device_kind()!r}: install the extra cuda13.")
    rivals = json.loads(options.rivals.read_text()) if options.rivals else {}
    lines = [
        "# The WKV on a GPU\n",
        f"`bi_wkv6`, w in float32, {machine()}. Medians of {options.calls} calls by "
        f"the GPU's own clock; backward is what both take more than forward. Faster by: times, "
        f"forward / both. {rivals.get('versions', 'Rivals in PyTorch were not measured.')}",
    ]
    programs = compile_all(cases)
    for shape, dtype in tqdm.tqdm(cases, "time", unit="call"):
        # Those in PyTorch are in bfloat16.
        of_shape = rivals.get(str(list(shape.tokens)), {}) if dtype == "bfloat16" else {}
        lines += table(shape, dtype, programs, of_shape, options.calls)
        if options.out:
            save(options.out, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
