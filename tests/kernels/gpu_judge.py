"""The Hopper kernels beside the float64 loop, in the interpreter or on a GPU."""

import functools

import chex
import float64_loop
import jax
import jax.numpy as jnp
import numpy as np
from float64_loop import REGIMES
from regimes import NAMES

from rwkv_kernels import pallas_gpu

# Of a maximum. Operands of products are rounded to 8 bits, or to 17: the largest errors seen are
# 7.9e-3 and 1.9e-5.
TOLERANCE = {jnp.bfloat16: 8e-3, jnp.float32: 2.5e-5}


@functools.cache
def rounded(shape, regime, dtype=jnp.bfloat16):
    """Inputs as the kernels get them: all but w, u and states rounded to a dtype."""
    x = float64_loop.inputs(*shape, regime, seed=REGIMES.index(regime))
    kept = ("w", "u", "state", "dstate")
    return {name: jnp.asarray(a, jnp.float32 if name in kept else dtype) for name, a in x.items()}


def judge_sees(x):
    return {name: np.asarray(a, np.float64) for name, a in x.items()}


def assert_near(results, expected, names, of="", dtype=jnp.bfloat16):
    for name, got, want in zip(names, results, expected, strict=True):
        scale = max(np.abs(want).max(), 1e-6)
        error = np.abs(np.asarray(got, np.float64) - want).max() / scale
        assert error < TOLERANCE[dtype], f"{of} {name}: {error:.1e} of the maximum"


def both_directions_as_is(interpret=None, tiling=None):
    """y and the gradients of r, k, v, w, u."""

    def value_and_gradients(r, k, v, w, u, g):
        function = functools.partial(pallas_gpu.bi_wkv6, tiling=tiling, interpret=interpret)
        y, pullback = jax.vjp(function, r, k, v, w, u)
        return y, *pullback(g)

    return value_and_gradients


def causal_as_is(interpret=None, tiling=None):
    """y, the final state and the gradients of all inputs."""

    def value_and_gradients(r, k, v, w, u, state, g, dstate):
        function = functools.partial(pallas_gpu.wkv6, tiling=tiling, interpret=interpret)
        (y, final), pullback = jax.vjp(function, r, k, v, w, u, state)
        return y, final, *pullback((g, dstate))

    return value_and_gradients


@functools.cache
def both_directions(shape, interpret=None, tiling=None):
    """Compiled once a shape."""
    return jax.jit(both_directions_as_is(interpret, tiling))


@functools.cache
def causal(shape, interpret=None, tiling=None):
    """Compiled once a shape."""
    return jax.jit(causal_as_is(interpret, tiling))


def check_both_directions(
    shape, regime, interpret=None, tiling=None, function=None, dtype=jnp.bfloat16
):
    """Runs the kernels, or the function given, and the judge on the same inputs."""
    x = rounded(shape, regime, dtype)
    function = function or both_directions(shape, interpret, tiling)
    results = function(*(x[name] for name in "rkvwug"))
    judge = judge_sees(x)
    y, gradients = float64_loop.bi_wkv(*(judge[name] for name in "rkvwu"), g=judge["g"])
    assert_near(results, (y, *gradients), NAMES[:6], regime, dtype)
    chex.assert_type(results[:4], dtype)
    chex.assert_type(results[4:], jnp.float32)
    dw = results[4]
    assert not dw[:, 0].any(), "the decay of the first token never acts"
    assert not dw[:, -1].any(), "nor that of the last"


def check_causal(shape, regime, interpret=None, tiling=None, function=None, dtype=jnp.bfloat16):
    """As `check_both_directions`, states and their gradients included."""
    x = rounded(shape, regime, dtype)
    names = ("r", "k", "v", "w", "u", "state", "g", "dstate")
    function = function or causal(shape, interpret, tiling)
    results = function(*(x[name] for name in names))
    judge = judge_sees(x)
    outputs, gradients = float64_loop.wkv(*(judge[name] for name in names))
    assert_near(results, (*outputs, *gradients), ("y", "final state", *NAMES[1:]), regime, dtype)
