"""The Hopper kernels on a Hopper GPU, against the float64 loop: run by `make gpu-check`."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64_loop import REGIMES
from gpu_judge import check_both_directions, check_causal

from rwkv_kernels import bi_wkv6
from rwkv_kernels.bench import arguments, forward_backward
from rwkv_kernels.shapes import REAL

pytestmark = pytest.mark.gpu

LENGTHS = (1, 2, 3, 7, 17, 49, 64, 65, 77, 150, 196, 257)


# Kernels are compiled once for all regimes.
@pytest.mark.parametrize(
    ("T", "N"),
    [*itertools.product(LENGTHS, (64, 80)), *itertools.product((49, 77), (96, 112, 128))],
)
def test_both_directions(T, N):
    for regime in REGIMES:
        check_both_directions((2, T, 2, N), regime)


@pytest.mark.parametrize("N", [64, 80])
@pytest.mark.parametrize("T", [1, 7, 49, 64, 77, 196, 257])
def test_float32(T, N):
    for regime in REGIMES:
        check_both_directions((2, T, 2, N), regime, dtype=jnp.float32)
        check_causal((2, T, 2, N), regime, dtype=jnp.float32)


@pytest.mark.parametrize("N", [64, 80])
@pytest.mark.parametrize("T", [1, 7, 64, 77, 257])
def test_causal_with_states(T, N):
    for regime in REGIMES:
        check_causal((2, T, 2, N), regime)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("shape", REAL, ids=lambda shape: shape.name)
def test_real_shapes_agree_with_chunked_in_float32(shape, dtype):
    inputs = arguments(shape, dtype)
    got = jax.jit(forward_backward("pallas_gpu"))(*inputs)
    exact = [x.astype(jnp.float32) for x in inputs]
    expected = jax.jit(forward_backward("chunked"))(*exact)
    for x, y in zip(got, expected, strict=True):
        x, y = np.asarray(x, np.float32), np.asarray(y)
        bound = 1e-2 if dtype == jnp.bfloat16 else 3e-5
        assert np.abs(x - y).max() < bound * np.abs(y).max()


def test_nothing_else_is_picked():
    inputs = arguments(REAL[0], jnp.bfloat16)[:5]
    program = jax.jit(bi_wkv6).lower(*inputs).as_text()
    assert "mosaic_gpu" in program
