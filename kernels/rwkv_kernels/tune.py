"""The quickest tile choices for the Hopper kernels, found by trying: `make tune`.

What can be chosen is how a sequence is swept for the states between its tiles; one of up to two
tiles has none. A sweep both ways is timed by the GPU's own clock (CUPTI), medians of calls after
one that is not timed; all choices are compiled before, side by side. What is quickest goes to
`gpu/tuned.json`, where every later call of that device, shape and dtype finds it.

Without a GPU nothing can be timed. `--static` ranks the choices by what the compiler makes of them
(extra `aot`): no spills first, then the most warps that are at work on a multiprocessor. That is
paper, and is printed and not kept.

python -m rwkv_kernels.tune [--static] [--shape B,T,H,N ...] [--out FILE.json]
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import tqdm

from rwkv_kernels import bench_gpu_static
from rwkv_kernels.bench import save
from rwkv_kernels.bench_gpu import SHAPES, arguments, timed
from rwkv_kernels.bench_gpu_static import Case
from rwkv_kernels.gpu import tiling as tilings
from rwkv_kernels.gpu import tuned
from rwkv_kernels.gpu.plan import TILE, Plan
from rwkv_kernels.gpu.sweep import Found, Sum, states
from rwkv_kernels.gpu.tiling import Tiling
from rwkv_kernels.pallas_gpu import is_hopper
from rwkv_kernels.platforms import device_kind, platform
from rwkv_kernels.shapes import WkvShape

Shape = tuple[int, int, int, int]


def choices(shape: Shape, tiling: Tiling) -> list[Tiling]:
    """Those that fit into shared memory, `tiling` first; it alone if there are no states."""
    _, T, _, N = shape
    if not Plan(T, N, False, tiling).stateful:
        return [tiling]
    every = tilings.sweeps(tiling, N, -(-T // TILE))
    return [x for x in every if not Plan(T, N, False, x).unservable()]


def compile_sweep(shape: Shape, tiling: Tiling) -> jax.stages.Compiled:
    """What there is to choose of a call and its gradient: the sweeps of either, of r, k, v, w and
    the gradient of y.
    """
    B, T, H, N = shape
    plan = Plan(T, N, False, tiling)

    def sweeps(r, k, v, w, g) -> list[Found]:
        said, asked = Sum(v, k, (False, True)), Sum(g, r, (True, False))
        return [*states(plan, w, [said]), *states(plan, w, [said, asked])]

    flat = (B, T, H * N)
    token, w = (jax.ShapeDtypeStruct(flat, dtype) for dtype in (jnp.bfloat16, jnp.float32))
    return jax.jit(sweeps).lower(token, token, token, w, token).compile()


def measure(shape: Shape, sweep: jax.stages.Compiled, calls: int) -> float:
    """Milliseconds."""
    r, k, v, w, _, g = arguments(WkvShape("", *shape))
    B, T, _, _ = shape
    inputs = [x.reshape(B, T, -1) for x in (r, k, v, w, g)]  # [B, T, H, N] -> [B, T, H * N]
    return timed(sweep, inputs, calls).total


def search(shape: Shape, calls: int) -> Tiling | None:
    """The quickest choice; None, and nothing timed, where there is nothing to choose."""
    tried = choices(shape, Case(shape).tiling)
    if len(tried) == 1:
        print(f"{list(shape)}: nothing to choose")
        return None
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = pool.map(functools.partial(compile_sweep, shape), tried)
        sweeps = list(tqdm.tqdm(compiled, f"compile {list(shape)}", len(tried), leave=False))
    times = {x: measure(shape, sweep, calls) for x, sweep in zip(tried, sweeps, strict=True)}
    for x, time in times.items():
        print(f"{list(shape)}: {time:.3f} ms, {x}", flush=True)
    return min(times, key=times.__getitem__)


def cost(shape: Shape, tiling: Tiling) -> tuple[int, int]:
    """Spilled bytes a thread, and the negative of how many warps work on a multiprocessor."""
    B, T, H, N = shape
    spilled, warps = 0, []
    for x in bench_gpu_static.compiled(Case(shape), tiling):
        if not x.name.endswith(("_states", "_segments")):
            continue
        how = bench_gpu_static.occupancy(Plan(T, N, False, tiling), B * H, x)
        here = min(how.fit, how.blocks / bench_gpu_static.MULTIPROCESSORS)
        spilled += x.spill_stores + x.spill_loads
        warps.append(int(4 * how.warpgroups * here))
    return spilled, -min(warps)


def rank(shape: Shape) -> None:
    """Prints the choices, the best on paper first."""
    tried = choices(shape, Case(shape).tiling)
    if len(tried) == 1:
        print(f"{list(shape)}: nothing to choose")
        return
    costs = {x: cost(shape, x) for x in tqdm.tqdm(tried, str(list(shape)), leave=False)}
    for x in sorted(costs, key=costs.__getitem__):
        spilled, warps = costs[x]
        print(f"{list(shape)}: {spilled} bytes spilled, {-warps} warps, {x}")


def keep(path: Path, device: str, found: dict[Shape, Tiling]) -> None:
    """Puts choices into a table, in the place of the same device's for the same shapes.

    Raises:
      ValueError: the table that is there is damaged (`tuned.choices`).
    """
    table = read(path) | {(device, "bfloat16", shape): x for shape, x in found.items()}
    entries = [
        {"device": device, "dtype": dtype, "shape": list(shape), "tiling": dataclasses.asdict(x)}
        for (device, dtype, shape), x in table.items()
    ]
    save(path, [json.dumps(entries, indent=1)])


def read(path: Path) -> dict:
    """The table at a path, empty if there is none; see `tuned.choices`."""
    return tuned.choices(path.read_text(), str(path)) if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--static", action="store_true", help="rank on paper, without a GPU")
    parser.add_argument("--shape", action="append", help="B,T,H,N; repeatable (default: real ones)")
    parser.add_argument("--calls", type=int, default=20, help="timed calls (default: 20)")
    default_out = Path(tuned.__file__).with_name(tuned.FILE)
    parser.add_argument("--out", type=Path, default=default_out, help="the table to put them in")
    options = parser.parse_args()
    shapes: list[Shape] = [] if options.shape else [shape.tokens for shape in SHAPES]
    for text in options.shape or ():
        numbers = text.split(",")
        if len(numbers) != 4 or not all(number.isdigit() for number in numbers):
            parser.error(f"--shape must be four whole numbers B,T,H,N, got {text!r}")
        B, T, H, N = map(int, numbers)
        if min(B, T, H) < 1:
            parser.error(f"--shape {text}: B, T and H must be 1 at least")
        if reasons := Plan(T, N, False, Case((B, T, H, N)).tiling).unservable():
            parser.error(f"--shape {text}: {'; '.join(reasons)}")
        shapes.append((B, T, H, N))
    if options.static:
        for shape in shapes:
            rank(shape)
        return
    if platform() != "gpu" or not is_hopper(device_kind()):
        sys.exit(
            f"This times kernels on a Hopper GPU, and JAX found {device_kind()!r}: without one, "
            "--static ranks the choices on paper."
        )
    try:
        failed = tune(shapes, options.calls, options.out)
    except ValueError as error:
        sys.exit(str(error))
    print(f"kept in {options.out}")
    if failed:
        sys.exit(f"not tuned: {'; '.join(failed)}")


def tune(shapes: Sequence[Shape], calls: int, out: Path) -> list[str]:
    """Keeps the quickest choice of each shape as soon as it is known; gives what failed, and why.

    Raises:
      ValueError: the table that is there is damaged, before anything is timed.
    """
    read(out)
    failed = []
    for shape in tqdm.tqdm(shapes, unit="shape"):
        try:
            found = search(shape, calls)
        except RuntimeError as error:  # JAX's own are of these
            failed.append(f"{list(shape)}: {str(error).splitlines()[0]}")
            continue
        if found is not None:
            keep(out, device_kind(), {shape: found})
    return failed


if __name__ == "__main__":
    main()
