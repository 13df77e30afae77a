"""Times of `ddlerp` on a GPU, beside XLA's own kernels for the same formula, and beside memory.

As in `bench_gpu`: the GPU's own times, medians of calls after one that is not timed; all is
compiled first. The roofline is what memory allows: each input and output crosses it once.

Needs a Hopper GPU: python -m rwkv_kernels.bench_ddlerp [--out FILE.md]
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tqdm
from jaxtyping import Array

from rwkv_kernels.bench import machine, save
from rwkv_kernels.bench_gpu import BANDWIDTH, timed
from rwkv_kernels.ddlerp import ddlerp
from rwkv_kernels.platforms import device_kind

# Tokens of 256 pairs: B/32's images and texts, B/16's images.
TOKENS = (256 * 49, 256 * 77, 256 * 196)
D, USES, RANK = 640, 5, 32
CALLS = 20


def formula(x: Array, xx: Array, z: Array, maa: Array, up: Array) -> tuple[Array, ...]:
    """As the model has it where no kernel serves."""
    maa, up = maa.astype(x.dtype), up.astype(x.dtype)
    parts = (z[:, RANK * a : RANK * (a + 1)] for a in range(USES))
    return tuple(x + xx * (maa[a] + jnp.matmul(part, up[a])) for a, part in enumerate(parts))


def both(function: Callable[..., tuple[Array, ...]]) -> Callable[..., Any]:
    def value_and_gradients(*arrays: Array):
        given, gradients = arrays[:5], arrays[5:]
        found, pullback = jax.vjp(function, *given)
        return found, pullback(gradients)

    return value_and_gradients


def shapes(M: int) -> list[jax.ShapeDtypeStruct]:
    """Of x, xx, z, maa and up, and of the gradients of what comes out."""
    token = jax.ShapeDtypeStruct((M, D), jnp.bfloat16)
    weights = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((USES, D), (USES, RANK, D)))
    z = jax.ShapeDtypeStruct((M, USES * RANK), jnp.bfloat16)
    return [token, token, z, *weights, *[token] * USES]


def crossing_bytes(M: int) -> tuple[int, int]:
    """Bytes of inputs and outputs of forward, and of backward alone; weights are small."""
    once = (2 + USES) * D + USES * RANK
    back = (1 + USES) * D + USES * RANK + 2 * D + USES * RANK
    return 2 * M * once, 2 * M * back


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    options = parser.parse_args()
    functions = {"kernels": ddlerp, "XLA": formula}
    programs = {
        (M, name): [
            jax.jit(f).lower(*shapes(M)[:count]).compile()
            for f, count in ((function, 5), (both(function), 5 + USES))
        ]
        for M in TOKENS
        for name, function in functions.items()
    }
    bandwidth = next((x for name, x in BANDWIDTH.items() if name in device_kind()), float("nan"))
    lines = [
        "# Interpolations on a GPU\n",
        f"`ddlerp`, {USES} uses of rank {RANK}, D = {D}, bfloat16, {machine()}. Microseconds by "
        f"the GPU's own clock, medians of {CALLS} calls; backward is what both take more than "
        "forward. Memory: what its bandwidth allows.\n",
        "| tokens | forward | by XLA | memory | backward | by XLA | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for M in tqdm.tqdm(TOKENS, unit="shape"):
        keys = jax.random.split(jax.random.key(0), 5 + USES)
        made = zip(keys, shapes(M), strict=True)
        inputs = [jax.random.normal(key, like.shape, like.dtype) for key, like in made]
        times = []
        for name in functions:
            once, twice = (
                1e3 * timed(program, inputs[:count], CALLS).total
                for program, count in zip(programs[M, name], (5, 5 + USES), strict=True)
            )
            times.append((once, twice - once))
        memory = (1e6 * size / bandwidth for size in crossing_bytes(M))
        of_ways = zip(*times, memory, strict=True)  # forward, then backward
        cells = (f"{x:.0f}" for way in of_ways for x in way)
        lines.append(f"| {M:,} | {' | '.join(cells)} |")
        tqdm.tqdm.write(lines[-1])
        if options.out:
            save(options.out, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
