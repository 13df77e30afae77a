"""`gated_head_norm` beside its formula and gradients in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from rwkv_kernels.head_norm import gated_head_norm

EPS = 1e-5
NAMES = ("y", "of x", "of scale", "of bias", "of gate")


def inputs(shape, *, mean=0.0, deviation=1.0, gates=1.0, seed=0):
    """The gradient of y, and x, scale, bias and gate."""
    rng = np.random.default_rng(seed)
    D = shape[-1]
    tokens = rng.normal(size=shape), rng.normal(mean, deviation, shape), rng.normal(0, gates, shape)
    g, x, gate = (jnp.asarray(a, jnp.bfloat16) for a in tokens)
    return g, x, jnp.asarray(rng.normal(1, 0.2, D)), jnp.asarray(rng.normal(size=D)), gate


def float64(heads, g, x, scale, bias, gate=None):
    """y, and the gradients of x, scale, bias and gate, each written out; without a gate, of 1."""
    g, x, scale, bias = (np.asarray(a, np.float64) for a in (g, x, scale, bias))
    by_head = (*x.shape[:-1], heads, -1)
    a = 0.0 if gate is None else np.asarray(gate, np.float64)
    sigmoid = np.exp(-np.logaddexp(0, -a))
    silu = 1.0 if gate is None else a * sigmoid
    of_normed = g * silu
    x_, g_ = (z.reshape(by_head) for z in (x, of_normed))  # [B, T, D] -> [B, T, H, N]
    scale_ = scale.reshape(heads, -1)  # [D] -> [H, N]
    centred = x_ - x_.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + EPS)
    z, h = centred / deviation, g_ * scale_
    of_x = h - h.mean(-1, keepdims=True) - z * (h * z).mean(-1, keepdims=True)
    normed = (z * scale_).reshape(x.shape) + bias
    of_scale = (g_ * z).reshape(x.shape).sum((0, 1))
    found = [normed * silu, (of_x / deviation).reshape(x.shape), of_scale, of_normed.sum((0, 1))]
    return found if gate is None else [*found, g * normed * sigmoid * (1 + a * (1 - sigmoid))]


def value_and_gradients(heads, function=gated_head_norm):
    """Of g and the inputs; the gate comes last here, if there is one."""

    def both(g, x, scale, bias, *gate):
        def norm(x, scale, bias, *gate):
            return function(x, *gate, scale, bias, heads, EPS)

        y, pullback = jax.vjp(norm, x, scale, bias, *gate)
        return y, *pullback(g)

    return both


def check(heads, given, function):
    found, expected = function(*given), float64(heads, *given)
    assert [a.dtype for a in found] == [given[1].dtype, *(a.dtype for a in given[1:])]
    for name, got, want in zip(NAMES, found, expected, strict=False):
        error = np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max()
        # What has tokens is rounded to eight bits; the others are sums in float32.
        assert error < (4e-3 if got.dtype == jnp.bfloat16 else 1e-5), f"{name}: {error:.1e}"
    assert len(found) == len(expected)
