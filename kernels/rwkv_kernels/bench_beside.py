"""Times of what kernels do beside the WKV on a GPU: interpolations, logits of decays, head norms.

Beside XLA's own kernels for the same formulas, and beside memory: each input and output crosses it
once. As in `bench_gpu`: the GPU's own times, medians of calls after one that is not timed; all is
compiled first.

Needs a Hopper GPU: python -m rwkv_kernels.bench_beside [--out FILE.md]
"""

import argparse
import concurrent.futures
import dataclasses
import functools
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
from rwkv_kernels.decay_logits import decay_logits
from rwkv_kernels.head_norm import gated_head_norm
from rwkv_kernels.platforms import device_kind

# Tokens of 256 pairs: B/32's images and texts, B/16's images.
TOKENS = (256 * 49, 256 * 77, 256 * 196)
D, USES, RANK, HEADS, EPS, DECAY_RANK = 640, 5, 32, 8, 1e-5, 64
CALLS = 20


@dataclasses.dataclass(frozen=True)
class Part:
    """What is timed.

    Attributes:
      kernels: of the inputs, by this package's kernels.
      formula: the same as the model has it where no kernel serves; means are kernels of their own,
        as there.
      inputs: of so many tokens.
      results: what comes out.
      bytes: a token's that cross memory forward, and backward; weights are small.
    """

    kernels: Callable[..., Any]
    formula: Callable[..., Any]
    inputs: Callable[[int], list[jax.ShapeDtypeStruct]]
    results: Callable[[int], list[jax.ShapeDtypeStruct]]
    bytes: tuple[int, int]

    def every(self, M: int) -> list[jax.ShapeDtypeStruct]:
        """Inputs, and gradients of the results."""
        return [*self.inputs(M), *self.results(M)]

    def programs(self, M: int) -> dict[str, list[Any]]:
        """Forward, and both, of either."""
        shapes, every = self.inputs(M), self.every(M)
        return {
            name: [
                jax.jit(f).lower(*given).compile()
                for f, given in ((function, shapes), (both(function, len(shapes)), every))
            ]
            for name, function in (("kernels", self.kernels), ("XLA", self.formula))
        }


def both(function: Callable[..., Any], inputs: int) -> Callable[..., Any]:
    """Of so many inputs and the gradients of what comes out."""

    def value_and_gradients(*arrays: Array):
        found, pullback = jax.vjp(function, *arrays[:inputs])
        gradients = arrays[inputs:]
        return found, pullback(gradients if isinstance(found, tuple) else gradients[0])

    return value_and_gradients


def _token(M: int, channels: int = D) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, M, channels), jnp.bfloat16)


def _of_ddlerp(M: int) -> list[jax.ShapeDtypeStruct]:
    """x, xx, z, maa and up."""
    weights = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((USES, D), (USES, RANK, D)))
    return [_token(M), _token(M), _token(M, USES * RANK), *weights]


def _ddlerp(x: Array, xx: Array, z: Array, maa: Array, up: Array) -> tuple[Array, ...]:
    maa, up = maa.astype(x.dtype), up.astype(x.dtype)
    parts = (z[..., RANK * a : RANK * (a + 1)] for a in range(USES))
    return tuple(x + xx * (maa[a] + jnp.matmul(part, up[a])) for a, part in enumerate(parts))


def _of_head_norm(M: int) -> list[jax.ShapeDtypeStruct]:
    """x, gate, scale and bias."""
    return [_token(M), _token(M), *[jax.ShapeDtypeStruct((D,), jnp.float32)] * 2]


@jax.custom_vjp
def _norm(x: Array, scale: Array, bias: Array) -> Array:
    return (_standardised(x)[0] * scale + bias).astype(x.dtype)


def _standardised(x: Array) -> tuple[Array, Array]:
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), -1, keepdims=True)
    mean, scale = map(jax.lax.optimization_barrier, (mean, jax.lax.rsqrt(variance + EPS)))
    return (x - mean) * scale, scale


def _norm_backward(kept: tuple[Array, Array], g: Array) -> tuple[Array, Array, Array]:
    x, scale = kept
    g = g.astype(jnp.float32)
    z, by_deviation = _standardised(x)
    h = g * scale
    along = (jax.lax.optimization_barrier(jnp.mean(y, -1, keepdims=True)) for y in (h, h * z))
    along_mean, along_z = along
    of_x = by_deviation * (h - along_mean - z * along_z)
    return of_x.astype(x.dtype), jnp.sum(g * z, (0, 1)), jnp.sum(g, (0, 1))


_norm.defvjp(lambda x, scale, bias: (_norm(x, scale, bias), (x, scale)), _norm_backward)


def _head_norm(x: Array, gate: Array, scale: Array, bias: Array) -> Array:
    by_head = (y.reshape(*y.shape[:-1], HEADS, -1) for y in (x, scale, bias))  # [D] -> [H, N]
    return _norm(*by_head).reshape(x.shape) * jax.nn.silu(gate)  # [1, M, H, N] -> [1, M, D]


def _of_decays(M: int) -> list[jax.ShapeDtypeStruct]:
    """z, up and bias."""
    weights = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((DECAY_RANK, D), (D,)))
    return [_token(M, DECAY_RANK), *weights]


def _decay_logits(z: Array, up: Array, bias: Array) -> Array:
    return bias + jnp.matmul(z, up.astype(z.dtype), preferred_element_type=jnp.float32)


PARTS = {
    f"Interpolations (`ddlerp`), {USES} uses of rank {RANK}": Part(
        ddlerp, _ddlerp, _of_ddlerp, lambda M: USES * [_token(M)],
        (2 * ((2 + USES) * D + USES * RANK), 2 * ((3 + USES) * D + 2 * USES * RANK)),
    ),
    f"Norms of {HEADS} heads with their gate": Part(
        functools.partial(gated_head_norm, heads=HEADS, eps=EPS), _head_norm, _of_head_norm,
        lambda M: [_token(M)],
        (2 * 3 * D, 2 * 5 * D),
    ),
    f"Logits of decays (`decay_logits`), rank {DECAY_RANK}, whose gradient is XLA's": Part(
        decay_logits, _decay_logits, _of_decays,
        lambda M: [jax.ShapeDtypeStruct((1, M, D), jnp.float32)],
        (2 * DECAY_RANK + 4 * D, 4 * D + 2 * 2 * DECAY_RANK),
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the tables to this Markdown file")
    options = parser.parse_args()
    cases = [(title, M) for title in PARTS for M in TOKENS]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = pool.map(lambda case: PARTS[case[0]].programs(case[1]), cases)
        programs = dict(
            zip(cases, tqdm.tqdm(found, total=len(cases), desc="compiling"), strict=True)
        )
    bandwidth = next((x for name, x in BANDWIDTH.items() if name in device_kind()), float("nan"))
    lines = [
        "# Beside the WKV on a GPU\n",
        f"D = {D}, bfloat16, {machine()}. Microseconds by the GPU's own clock, medians of {CALLS} "
        "calls; backward is what both take more than forward. Memory: what its bandwidth allows.",
    ]
    for title, part in PARTS.items():
        lines += [
            f"\n## {title}\n",
            "| tokens | forward | by XLA | memory | backward | by XLA | memory |",
            "|---|---|---|---|---|---|---|",
        ]
        for M in tqdm.tqdm(TOKENS, unit="shape"):
            shapes, every = part.inputs(M), part.every(M)
            keys = jax.random.split(jax.random.key(0), len(every))
            made = zip(keys, every, strict=True)
            arrays = [jax.random.normal(key, like.shape, like.dtype) for key, like in made]
            times = []
            for once, twice in programs[title, M].values():
                forward = 1e3 * timed(once, arrays[: len(shapes)], CALLS).total
                times.append((forward, 1e3 * timed(twice, arrays, CALLS).total - forward))
            memory = (1e6 * M * size / bandwidth for size in part.bytes)
            of_ways = zip(*times, memory, strict=True)  # forward, then backward
            cells = (f"{x:.0f}" for way in of_ways for x in way)
            lines.append(f"| {M:,} | {' | '.join(cells)} |")
            tqdm.tqdm.write(lines[-1])
            if options.out:
                save(options.out, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
