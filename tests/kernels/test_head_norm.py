"""The head norm's kernels in the TPU interpreter, against float64."""

import functools

import interpreter
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreter import TPU_INTERPRETER, assert_no_races

from rwkv_kernels.head_norm import head_norm, misfits, unservable

EPS = 1e-5


def inputs(shape, *, mean=0.0, deviation=1.0, seed=0):
    """x, scale, bias, and the gradient of y."""
    rng = np.random.default_rng(seed)
    D = shape[-1]
    x, g = rng.normal(mean, deviation, shape), rng.normal(size=shape)
    x, g = (jnp.asarray(a, jnp.bfloat16) for a in (x, g))
    return x, jnp.asarray(rng.normal(1, 0.2, D)), jnp.asarray(rng.normal(size=D)), g


def float64(heads, x, scale, bias, g):
    """y, and the gradients of x, scale and bias, each written out."""
    x, scale, bias, g = (np.asarray(a, np.float64) for a in (x, scale, bias, g))
    by_head = (*x.shape[:-1], heads, -1)
    x_, g_ = (a.reshape(by_head) for a in (x, g))  # [B, T, D] -> [B, T, H, N]
    scale_ = scale.reshape(heads, -1)  # [D] -> [H, N]
    centred = x_ - x_.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + EPS)
    z, h = centred / deviation, g_ * scale_
    of_x = h - h.mean(-1, keepdims=True) - z * (h * z).mean(-1, keepdims=True)
    y = (z * scale_).reshape(x.shape) + bias
    of_scale = (g_ * z).reshape(x.shape).sum((0, 1))
    return y, (of_x / deviation).reshape(x.shape), of_scale, g.sum((0, 1))


def assert_near(heads, given):
    x, scale, bias, g = given
    function = functools.partial(head_norm, heads=heads, eps=EPS, interpret=TPU_INTERPRETER)
    y, pullback = jax.vjp(lambda x, s, b: function(x, s, b), x, scale, bias)
    found = y, *pullback(g)
    assert [a.dtype for a in found] == [x.dtype, x.dtype, scale.dtype, bias.dtype]
    names = ("y", "of x", "of scale", "of bias")
    for name, got, want in zip(names, found, float64(heads, *given), strict=True):
        error = np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max()
        # y and the gradient of x are rounded to eight bits; the others are sums in float32.
        assert error < (4e-3 if got.dtype == jnp.bfloat16 else 1e-5), f"{name}: {error:.1e}"


@pytest.mark.parametrize(
    ("shape", "heads"),
    [
        ((1, 16, 640), 8),  # heads of 80, of which none ends with a register but the last
        ((2, 48, 128), 2),
        ((32, 3, 256), 4),  # turned: T is no multiple of 16
        ((1, 528, 128), 1),  # three blocks
        ((1, 16, 2688), 42),  # as many heads as there may be
    ],
    ids=str,
)
def test_values_and_gradients(shape, heads, monkeypatch):
    watched = interpreter.watch_tpu(monkeypatch)
    assert_near(heads, inputs(shape))
    assert_no_races(watched, kernels=2)


@pytest.mark.parametrize(("mean", "deviation"), [(100.0, 1.0), (0.0, 1e-4), (-3.0, 1e4)])
def test_large_means_and_odd_deviations(mean, deviation):
    assert_near(8, inputs((1, 32, 640), mean=mean, deviation=deviation))


def test_what_the_kernels_cannot_serve():
    assert misfits((256, 49, 640), jnp.bfloat16, 8) == ()
    assert "x is float32" in misfits((256, 49, 640), jnp.dtype("float32"), 8)[0]
    assert "D = 320 of 4 heads" in misfits((256, 49, 320), jnp.bfloat16, 4)[0]
    assert "at most 42 heads" in misfits((256, 49, 5504), jnp.bfloat16, 43)[0]
    assert "tokens (24, 49)" in misfits((24, 49, 640), jnp.bfloat16, 8)[0]
    assert "at most 11702 channels" in misfits((16, 16, 12800), jnp.bfloat16, 8)[0]
    (reason,) = unservable((256, 49, 640), jnp.bfloat16, 8)
    assert reason == "it is a TPU's kernel, and this is 'cpu'"


@pytest.mark.parametrize(
    ("x", "scale", "bias", "message"),
    [
        ((16, 3, 128), 64, 128, r"scale must be \(128,\) to go with x \(16, 3, 128\), got \(64,\)"),
        ((16, 3, 128), 128, 1, r"bias must be \(128,\) .*, got \(1,\)"),
        ((15, 3, 128), 128, 128, r"no kernel serves x \(15, 3, 128\): tokens \(15, 3\)"),
    ],
)
def test_bad_input_is_refused(x, scale, bias, message):
    x, scale, bias = jnp.zeros(x, jnp.bfloat16), jnp.zeros(scale), jnp.zeros(bias)
    with pytest.raises(ValueError, match=message):
        head_norm(x, scale, bias, 2, EPS)
