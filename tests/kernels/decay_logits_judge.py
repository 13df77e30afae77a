"""`decay_logits` beside its formula and gradients in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from rwkv_kernels.decay_logits import decay_logits

NAMES = ("w", "of z", "of up", "of bias")


def inputs(shape: tuple[int, ...], rank: int, seed: int = 0) -> list:
    """z, up, bias, and the gradient of w; large biases, of which no digit may be lost."""
    rng = np.random.default_rng(seed)
    z, g = rng.uniform(-1, 1, (*shape[:-1], rank)), rng.normal(size=shape)
    up, bias = rng.normal(0, 0.1, (rank, shape[-1])), rng.uniform(-6, -1, shape[-1])
    return [jnp.asarray(z, jnp.bfloat16), *(jnp.asarray(x, jnp.float32) for x in (up, bias, g))]


def float64(z, up, bias, g) -> list[np.ndarray]:
    """w, and the gradients of z, up and bias; up as the kernel sees it."""
    z, up, bias, g = (np.asarray(x, np.float64) for x in (z, up.astype(jnp.bfloat16), bias, g))
    flat = z.reshape(-1, z.shape[-1]), g.reshape(-1, g.shape[-1])  # [*B, _] -> [M, _]
    return [bias + z @ up, g @ up.T, flat[0].T @ flat[1], flat[1].sum(0)]


def value_and_gradients(function=decay_logits):
    def both(z, up, bias, g):
        w, pullback = jax.vjp(function, z, up, bias)
        return [w, *pullback(g)]

    return both


def check(given, function) -> None:
    z, up, bias, g = given
    found, expected = function(*given), float64(*given)
    assert [x.dtype for x in found] == [g.dtype, *(x.dtype for x in (z, up, bias))]
    # Exact products, summed in float32, which a tensor core cuts off, sixteen channels at a time;
    # gradients of z and up are of a product of rounded numbers.
    bounds = 1e-6, 4e-3, 4e-3, 1e-6
    for name, bound, got, want in zip(NAMES, bounds, found, expected, strict=True):
        error = np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max()
        assert error < bound, f"{name}: {error:.1e}"
