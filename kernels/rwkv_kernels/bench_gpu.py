"""Times of the WKV on a GPU beside its roofline and its rivals; `make gpu-check` runs it.

Times are the GPU's own (CUPTI), medians of calls after one that is not timed. The roofline is what
memory allows: each input and output crosses it once. Rivals in PyTorch are timed by
`bench_gpu_torch.py` in an environment of their own, whose file is given here.

Needs a GPU: python -m rwkv_kernels.bench_gpu [--rivals FILE.json] [--out FILE.md]
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

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
# Bytes a second from memory, by data sheet: NVIDIA H200 SXM, H100 SXM and PCIe.
BANDWIDTH = {"H200": 4.8e12, "H100 80GB HBM3": 3.35e12, "H100 PCIe": 2.0e12}
# `associative_scan` keeps too much for these shapes.
_NAMES = ("pallas_gpu", "chunked", "reference")
# `reference` keeps a state of every step for its gradient.
_MOST_STATE_BYTES = 20e9


def crossing_bytes(shape: WkvShape) -> tuple[int, int]:
    """Bytes of inputs and outputs of forward, and of backward alone; bfloat16, w and dw float32."""
    numbers = shape.B * shape.T * shape.H * shape.N
    return numbers * (4 * 2 + 4), numbers * (4 * 2 + 4 + 3 * 2 + 4)


def roofline(shape: WkvShape) -> tuple[float, float]:
    """Milliseconds that memory takes for forward and for backward; NaN for an unknown GPU."""
    kind = device_kind()
    bandwidth = next((rate for name, rate in BANDWIDTH.items() if name in kind), float("nan"))
    once, back = crossing_bytes(shape)
    return 1e3 * once / bandwidth, 1e3 * back / bandwidth


def arguments(shape: WkvShape) -> list[jax.Array]:
    """r, k, v, w, u and a gradient of y, as `bench.arguments`, but made on the device."""
    keys = jax.random.split(jax.random.key(0), 6)
    r, k, v, g = (jax.random.normal(key, shape.tokens, jnp.bfloat16) for key in keys[:4])
    w = jax.random.uniform(keys[4], shape.tokens, jnp.float32, -6, -0.5)
    u = 0.5 * jax.random.normal(keys[5], (shape.H, shape.N), jnp.bfloat16)
    return [r, k, v, w, u, g]


def milliseconds(function, inputs, calls: int) -> float:
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*inputs))
    _, times = profiler.measure(compiled, iterations=calls)(*inputs)
    if not times:
        raise RuntimeError("the profiler saw no kernel run on the GPU")
    return statistics.median(times)


def measure(name: str, shape: WkvShape, calls: int) -> tuple[float, float]:
    """Milliseconds of forward, and of forward and backward."""
    *inputs, g = arguments(shape)
    once = milliseconds(forward(name), inputs, calls)
    return once, milliseconds(forward_backward(name), [*inputs, g], calls)


def table(shape: WkvShape, rivals: dict[str, list[float]], calls: int) -> list[str]:
    call = Call("bi_wkv6", platform(), shape.tokens, jnp.dtype(jnp.bfloat16), device_kind())
    states = 4 * shape.B * shape.T * shape.H * shape.N**2
    names = [
        name
        for name in servable(call)
        if name in _NAMES and (name != "reference" or states < _MOST_STATE_BYTES)
    ]
    once, back = roofline(shape)
    rows = {name: measure(name, shape, calls) for name in names}
    rows |= {name: (times[0], times[1]) for name, times in rivals.items()}
    lines = [
        f"\n### {shape.name}: {list(shape.tokens)}\n",
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
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=20, help="timed calls (default: 20)")
    parser.add_argument("--rivals", type=Path, help="what bench_gpu_torch.py wrote")
    parser.add_argument("--out", type=Path, help="also write the tables to this Markdown file")
    options = parser.parse_args()
    if options.calls < 2:
        parser.error(f"--calls must be at least 2 to have a median, got {options.calls}")
    if platform() != "gpu":
        sys.exit(f"This measures a GPU, and JAX found {device_kind()!r}: install the extra cuda13.")
    rivals = json.loads(options.rivals.read_text()) if options.rivals else {}
    lines = [
        "# The WKV on a GPU\n",
        f"`bi_wkv6`, bfloat16 with w in float32, {machine()}. Medians of {options.calls} calls by "
        f"the GPU's own clock; backward is what both take more than forward. Faster by: times, "
        f"forward / both. {rivals.get('versions', 'Rivals in PyTorch were not measured.')}",
    ]
    for shape in tqdm.tqdm(SHAPES, unit="shape"):
        lines += table(shape, rivals.get(str(list(shape.tokens)), {}), options.calls)
    print("\n".join(lines))
    if options.out:
        save(options.out, lines)


if __name__ == "__main__":
    main()
