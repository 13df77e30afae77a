"""`ddlerp` beside its formula and gradients in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from rwkv_kernels.ddlerp import ddlerp

# Operands of products are rounded to 8 bits; the largest error seen is 3.4e-3 of a norm.
TOLERANCE = 5e-3


def inputs(shape: tuple[int, ...], uses: int, rank: int, seed: int = 0) -> tuple[list, list]:
    """x, xx, z, maa, up as the kernels get them, and gradients of what comes out."""
    rng = np.random.default_rng(seed)
    D = shape[-1]
    shapes = (shape, shape, (*shape[:-1], uses * rank), (uses, D), (uses, rank, D))
    kept = (jnp.bfloat16,) * 3 + (jnp.float32,) * 2
    given = [jnp.asarray(rng.normal(size=s), dtype) for s, dtype in zip(shapes, kept, strict=True)]
    gradients = [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for _ in range(uses)]
    return given, gradients


def float64(given, gradients) -> list[np.ndarray]:
    """What comes out of each use, and the gradients of x, xx, z, maa and up."""
    rounded = [*given[:4], given[4].astype(jnp.bfloat16)]
    x, xx, z, maa, up = (np.asarray(a, np.float64) for a in rounded)
    A, R, D = up.shape
    g = np.stack([np.asarray(a, np.float64) for a in gradients]).reshape(A, -1, D)
    x, xx, z = (a.reshape(-1, a.shape[-1]) for a in (x, xx, z))  # [*B, D] -> [M, D]
    z = np.moveaxis(z.reshape(-1, A, R), 1, 0)  # [M, A R] -> [A, M, R]
    share = maa[:, None] + z @ up
    of_share = g * xx
    of_z = np.moveaxis(of_share @ np.swapaxes(up, 1, 2), 0, 1)  # [A, M, R] -> [M, A, R]
    found = [*(x + xx * share), g.sum(0), (g * share).sum(0), of_z, of_share.sum(1)]
    return [*found, np.swapaxes(z, 1, 2) @ of_share]


def value_and_gradients(function=ddlerp):
    def both(given, gradients):
        found, pullback = jax.vjp(function, *given)
        return [*found, *pullback(tuple(gradients))]

    return both


def check(given, gradients, function) -> None:
    expected, got = float64(given, gradients), function(given, gradients)
    names = [f"use {a}" for a in range(len(gradients))]
    names += [f"gradient of {name}" for name in ("x", "xx", "z", "maa", "up")]
    for name, x, want in zip(names, got, expected, strict=True):
        error = np.linalg.norm(np.asarray(x, np.float64).ravel() - want.ravel())
        assert error < TOLERANCE * np.linalg.norm(want), f"{name}: {error:.1e}"
