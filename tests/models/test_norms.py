"""Norms: values, gradients against float64, and what is kept for them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas import tpu as pltpu

from rwkv_jax.models import layers, norms
from rwkv_jax.models.norms import HeadNorm, HeadsOfLastAxis, LastAxis, LayerNorm, norm, standardise
from rwkv_kernels import head_norm

EPS = 1e-5


def float64(x, scale, bias, g):
    """Normed last axis, and the gradients of x, scale and bias, by differences of the formula."""

    def value(x, scale, bias):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS) * scale + bias

    def gradient(of: int):
        inputs = [x, scale, bias]
        found = np.empty_like(inputs[of])
        for at in np.ndindex(found.shape):
            moved = []
            for step in (1e-5, -1e-5):
                there = inputs[of].copy()
                there[at] += step
                moved.append((value(*inputs[:of], there, *inputs[of + 1 :]) * g).sum())
            found[at] = (moved[0] - moved[1]) / 2e-5
        return found

    return value(x, scale, bias), [gradient(of) for of in range(3)]


@pytest.fixture(scope="module")
def given():
    rng = np.random.default_rng(0)
    shapes = ((2, 3, 2, 5), (2, 5), (2, 5), (2, 3, 2, 5))
    return [mean + rng.normal(size=shape) for mean, shape in zip((3, 1, 0, 0), shapes, strict=True)]


def both(groups):
    @jax.jit
    def value_and_gradients(x, scale, bias, g):
        y, pullback = jax.vjp(lambda *x: norm(*x, groups, EPS), x, scale, bias)
        return y, list(pullback(g))

    return value_and_gradients


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_values_and_gradients(given, platform, monkeypatch):
    """On a GPU means are kept apart by a barrier, which any device can run."""
    monkeypatch.setattr(layers, "platform", lambda: platform)
    given32 = [jnp.asarray(x, jnp.float32) for x in given]
    program = str(jax.make_jaxpr(both(LastAxis()))(*given32))
    assert ("optimization_barrier" in program) == (platform == "gpu")
    got = both(LastAxis())(*given32)
    chex.assert_trees_all_close(got, float64(*given), rtol=1e-4, atol=1e-5)


def test_heads_without_a_view_by_head(given):
    """What a TPU takes, through products with zeros and ones."""
    flat = [jnp.asarray(x.reshape(*x.shape[:-2], 10), jnp.float32) for x in given]  # [2, 5] -> [10]
    y, gradients = both(HeadsOfLastAxis(heads=2, size=5))(*flat)
    wanted, of_inputs = float64(*given)
    chex.assert_trees_all_close(y, wanted.reshape(y.shape), rtol=1e-4, atol=1e-5)
    for got, of_input in zip(gradients, of_inputs, strict=True):
        chex.assert_trees_all_close(got, of_input.reshape(got.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("samples", "kernels"), [(16, 1), (2, 0)])
def test_a_tpu_takes_a_kernel_for_heads_where_one_serves(samples, kernels, monkeypatch):
    """As a view by head gives; and products with zeros and ones where none serves."""
    rng = np.random.default_rng(0)
    y, g = (jnp.asarray(rng.normal(size=(samples, 3, 2, 64)), jnp.bfloat16) for _ in range(2))
    module = HeadNorm(jnp.asarray(rng.normal(1, 0.2, 128), jnp.float32), EPS)
    graphdef, state = nnx.split(module)

    def both():
        found, pullback = jax.vjp(lambda s, y: nnx.merge(graphdef, s)(y), state, y)
        gradients = pullback(g.reshape(found.shape))  # [B, T, H, N] -> [B, T, D]
        return [np.asarray(x, np.float64) for x in jax.tree.leaves((found, gradients))]

    by_head, calls = both(), []

    def kernel(*given):
        calls.append(given)
        return original(*given, interpret=pltpu.InterpretParams())

    original = head_norm.head_norm
    monkeypatch.setattr(norms, "platform", lambda: "tpu")
    monkeypatch.setattr(head_norm, "head_norm", kernel)
    monkeypatch.setattr(head_norm, "unservable", head_norm.misfits)
    got = both()
    assert len(calls) == kernels
    for x, wanted in zip(got, by_head, strict=True):
        assert np.linalg.norm(x - wanted) < 4e-3 * np.linalg.norm(wanted)


def test_a_large_mean_does_not_cancel():
    x = 1e4 + jax.random.normal(jax.random.key(0), (4, 640))
    z, _ = standardise(x, LastAxis(), EPS)
    wide = np.asarray(x, np.float64)
    wanted = (wide - wide.mean(-1, keepdims=True)) / wide.std(-1, keepdims=True)
    chex.assert_trees_all_close(z, wanted, rtol=0, atol=2e-3)  # of x's own last digit, 1e-3


def test_equal_channels_are_all_bias_with_finite_gradients():
    x, scale, bias = jnp.full((3, 8), 7.0), jnp.full(8, 2.0), jnp.arange(8.0)
    y, (of_x, of_scale, _) = both(LastAxis())(x, scale, bias, jnp.ones((3, 8)))
    chex.assert_trees_all_equal(y, jnp.broadcast_to(bias, y.shape))
    chex.assert_trees_all_equal(of_x, jnp.zeros_like(x))
    chex.assert_trees_all_equal(of_scale, jnp.zeros_like(scale))


@pytest.mark.parametrize(
    ("module", "shape"),
    [(LayerNorm(16), (2, 3, 16)), (HeadNorm(jnp.ones(16), EPS), (2, 3, 2, 8))],
    ids=["channels", "heads"],
)
def test_only_what_it_was_given_is_kept_for_the_backward_pass(module, shape):
    x = jax.random.normal(jax.random.key(0), shape, jnp.bfloat16)
    graphdef, state = nnx.split(module)
    _, pullback = jax.vjp(lambda state, x: nnx.merge(graphdef, state)(x), state, x)
    (kept,) = [each for each in jax.tree.leaves(pullback) if each.size >= x.size]
    chex.assert_trees_all_equal(kept, x)
