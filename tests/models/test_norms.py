"""Norms: values, gradients against float64, and what is kept for them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
from jax.experimental.pallas import tpu as pltpu

from rwkv_jax.models import layers, norms
from rwkv_jax.models.norms import HeadNorm, HeadsOfLastAxis, LastAxis, moments, norm, standardise
from rwkv_kernels import head_norm, head_norm_gpu, head_norm_tpu

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


# Their module, and the dtype in which the same by head is the judge: the gate is rounded in between
# where it is XLA's.
KERNELS = {
    "tpu": (head_norm_tpu, pltpu.InterpretParams(), jnp.bfloat16),
    "gpu": (head_norm_gpu, InterpretGPUParams(), jnp.float32),
}


@pytest.mark.parametrize(
    ("device", "samples", "kernels"), [("tpu", 16, 1), ("tpu", 2, 0), ("gpu", 64, 1)]
)
def test_a_kernel_is_taken_for_heads_where_one_serves(device, samples, kernels, monkeypatch):
    """As a view by head gives; and, on a TPU, products with zeros and ones where none serves."""
    rng = np.random.default_rng(0)
    y, gate, g = (jnp.asarray(rng.normal(size=(samples, 3, 128)), jnp.bfloat16) for _ in range(3))
    module = HeadNorm(jnp.asarray(rng.normal(1, 0.2, 128), jnp.float32), EPS)
    graphdef, state = nnx.split(module)

    def both(dtype):
        def function(state, y, gate):
            return nnx.merge(graphdef, state)(y, gate, 2)

        found, pullback = jax.vjp(function, state, y.astype(dtype), gate.astype(dtype))
        leaves = jax.tree.leaves((found, pullback(g.astype(dtype))))
        return [np.asarray(x, np.float64) for x in leaves]

    of_device, interpret, judged_in = KERNELS[device]
    by_head, calls = both(judged_in), []

    def kernel(*given):
        calls.append(given)
        return of_device.gated_head_norm(*given, interpret=interpret)

    def unservable(*given):
        return of_device.unservable(*given, device_kind="NVIDIA H200")

    monkeypatch.setattr(norms, "platform", lambda: device)
    monkeypatch.setattr(head_norm, "gated_head_norm", kernel)
    monkeypatch.setattr(head_norm, "unservable", unservable)
    got = both(jnp.bfloat16)
    assert len(calls) == kernels
    for x, wanted in zip(got, by_head, strict=True):
        assert np.linalg.norm(x - wanted) < 4e-3 * np.linalg.norm(wanted)


def test_a_large_mean_does_not_cancel():
    x = 1e4 + jax.random.normal(jax.random.key(0), (4, 640))
    z = standardise(x, LastAxis(), moments(x, LastAxis(), EPS))
    wide = np.asarray(x, np.float64)
    wanted = (wide - wide.mean(-1, keepdims=True)) / wide.std(-1, keepdims=True)
    chex.assert_trees_all_close(z, wanted, rtol=0, atol=2e-3)  # of x's own last digit, 1e-3


def test_equal_channels_are_all_bias_with_finite_gradients():
    x, scale, bias = jnp.full((3, 8), 7.0), jnp.full(8, 2.0), jnp.arange(8.0)
    y, (of_x, of_scale, _) = both(LastAxis())(x, scale, bias, jnp.ones((3, 8)))
    chex.assert_trees_all_equal(y, jnp.broadcast_to(bias, y.shape))
    chex.assert_trees_all_equal(of_x, jnp.zeros_like(x))
    chex.assert_trees_all_equal(of_scale, jnp.zeros_like(scale))


@pytest.mark.parametrize("groups", [LastAxis(), HeadsOfLastAxis(heads=2, size=8)], ids=str)
def test_only_what_it_was_given_and_moments_are_kept_for_the_backward_pass(groups):
    x = jax.random.normal(jax.random.key(0), (2, 3, 16), jnp.bfloat16)
    _, pullback = jax.vjp(lambda *x: norm(*x, groups, EPS), x, jnp.ones(16), jnp.zeros(16))
    kept = [each for each in jax.tree.leaves(pullback) if each.ndim > 1]  # not scale and bias
    chex.assert_trees_all_equal(kept, [x, *moments(x, groups, EPS)])


def test_moments_are_not_computed_again():
    def sums(policy) -> int:
        """In the program of a loss's gradient, whose activations are computed again."""
        again = jax.checkpoint(
            lambda x: jnp.sin(norm(x, scale, bias, LastAxis(), EPS)), policy=policy
        )
        gradient = jax.value_and_grad(lambda x: jnp.sum(again(x)))
        return jax.jit(gradient).lower(x).as_text().count("stablehlo.reduce(")

    x, scale, bias = jnp.ones((2, 3, 16)), jnp.ones(16), jnp.zeros(16)
    kept = jax.checkpoint_policies.save_only_these_names(layers.KEPT)
    everything = jax.checkpoint_policies.everything_saveable
    assert sums(kept) == sums(everything) == sums(None) - 2
