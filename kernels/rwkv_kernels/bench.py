"""Times and temporary memory of every implementation: `python -m rwkv_kernels.bench [--out FILE]`.

All implementations of one shape are compiled first and then run in turn, round after round, so that
whatever else the machine does meets all of them; what is reported is the median of the rounds, and
in brackets the quickest one. The load average tells whether the machine was busy: an implementation
of many small steps on all cores loses most by that.
Forward + backward is one compiled function that returns y and all five gradients. Temporary memory
is what the compiled function asks for beside its inputs and outputs (`memory_analysis`).
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rwkv_kernels import platforms, shapes
from rwkv_kernels.api import Call, bi_wkv6, servable
from rwkv_kernels.shapes import WkvShape

RIVALS = ("reference", "associative_scan")


def forward(name: str) -> Callable[..., jax.Array]:
    """y of r, k, v, w, u."""
    return lambda r, k, v, w, u: bi_wkv6(r, k, v, w, u, implementation=name)


def forward_backward(name: str) -> Callable[..., tuple]:
    """y and the gradients of r, k, v, w, u, from those and the gradient of y."""

    def function(r, k, v, w, u, g):
        y, pullback = jax.vjp(forward(name), r, k, v, w, u)
        return y, *pullback(g)

    return function


def arguments(shape: WkvShape, dtype=jnp.float32) -> list[jax.Array]:
    """r, k, v, w, u and a gradient of y; decays between 0.55 and 0.998, as a fresh model has."""
    rng = np.random.default_rng(0)
    r, k, v, g = (jnp.asarray(rng.standard_normal(shape.tokens), dtype) for _ in range(4))
    w = jnp.asarray(rng.uniform(-6, -0.5, shape.tokens), jnp.float32)
    u = jnp.asarray(0.5 * rng.standard_normal((shape.H, shape.N)), dtype)
    return [r, k, v, w, u, g]


def compile_both(name: str, shape: WkvShape, dtype=jnp.float32) -> tuple:
    """The compiled forward, and the compiled forward + backward."""
    tokens = jax.ShapeDtypeStruct(shape.tokens, dtype)
    w = jax.ShapeDtypeStruct(shape.tokens, jnp.float32)
    u = jax.ShapeDtypeStruct((shape.H, shape.N), dtype)
    inputs = (tokens, tokens, tokens, w, u)
    return (
        jax.jit(forward(name)).lower(*inputs).compile(),
        jax.jit(forward_backward(name)).lower(*inputs, tokens).compile(),
    )


def temporary_bytes(name: str, shape: WkvShape, dtype=jnp.float32) -> int:
    """What the compiled forward + backward asks for beside its inputs and outputs; nothing runs."""
    _, both = compile_both(name, shape, dtype)
    return both.memory_analysis().temp_size_in_bytes


def measure(shape: WkvShape, names: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Medians in ms and temporary MB by implementation; implementations take turns.

    Each turn begins with a call that is not timed: what the one before left of the caches and of
    the allocator's pages (a rival frees gigabytes) would be measured with it.
    """
    compiled = {name: compile_both(name, shape) for name in names}
    *inputs, g = arguments(shape)
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in names}
    for _ in range(rounds):
        for name, (only_forward, both) in compiled.items():
            for kind, call in enumerate(
                (lambda f=only_forward: f(*inputs), lambda f=both: f(*inputs, g))
            ):
                jax.block_until_ready(call())
                start = time.perf_counter()
                jax.block_until_ready(call())
                times[name][kind].append(1e3 * (time.perf_counter() - start))
    return {
        name: {
            "forward": statistics.median(times[name][0]),
            "forward, quickest": min(times[name][0]),
            "both": statistics.median(times[name][1]),
            "both, quickest": min(times[name][1]),
            "megabytes": both.memory_analysis().temp_size_in_bytes / 1e6,
        }
        for name, (_, both) in compiled.items()
    }


def table(shape: WkvShape, results: dict[str, dict[str, float]]) -> list[str]:
    """One shape's rows in Markdown; a ratio over a rival says how many times as fast."""
    lines = [
        f"\n### {shape.name}: {list(shape.tokens)}\n",
        "| | forward, ms | forward + backward, ms | temporary, MB | "
        + " | ".join(f"over `{rival}`: forward / both / memory" for rival in RIVALS)
        + " |",
        "|---|---|---|---|" + "---|" * len(RIVALS),
    ]
    for name, row in results.items():
        ratios = [
            " / ".join(
                f"{results[rival][what] / row[what]:.1f}x"
                for what in ("forward", "both", "megabytes")
            )
            for rival in RIVALS
        ]
        milliseconds = [
            f"{row[kind]:.1f} ({row[f'{kind}, quickest']:.1f})" for kind in ("forward", "both")
        ]
        cells = [*milliseconds, f"{row['megabytes']:.1f}", *ratios]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return lines


def machine() -> str:
    """What the numbers were measured on: kind of device, cores, versions; no names."""
    device = jax.devices()[0]
    model = device.device_kind
    cpuinfo = Path("/proc/cpuinfo")
    if device.platform == "cpu" and cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return f"{model}, {os.cpu_count()} CPU cores, jax {jax.__version__}, {platform.system()}"


def save(path: Path, lines: list[str]) -> None:
    """Writes a page whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text("\n".join(lines) + "\n")
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds (default: 7)")
    parser.add_argument("--shape", action="append", help="a part of a shape's name; repeatable")
    parser.add_argument("--out", type=Path, help="also write the tables to this Markdown file")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    known = {shape.name: shape for shape in (*shapes.REAL, *shapes.SMALL)}
    chosen = [
        shape
        for name, shape in known.items()
        if not options.shape or any(part in name for part in options.shape)
    ]
    if not chosen:
        parser.error(f"no shape is named like {options.shape}; known: {', '.join(known)}")

    lines = [
        "# WKV benchmark\n",
        f"`bi_wkv6`, float32, {machine()}. Medians of {options.rounds} rounds in which the "
        "implementations take turns, each after a call that is not timed; in brackets the "
        "quickest; ratios are of medians. Temporary "
        "memory is that of the compiled forward + backward.",
    ]
    print("\n".join(lines), flush=True)
    for shape in chosen:
        call = Call("bi_wkv6", platforms.platform(), shape.tokens, jnp.dtype("float32"))
        rows = table(shape, measure(shape, servable(call), options.rounds))
        if hasattr(os, "getloadavg"):
            rows.append(f"\nLoad average of the last minute: {os.getloadavg()[0]:.1f}")
        print("\n".join(rows), flush=True)
        lines += rows
    if options.out:
        save(options.out, lines)


if __name__ == "__main__":
    main()
