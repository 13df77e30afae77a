"""The TPU kernels through the real compiler, for real chips, at the real shapes.

Run by `make test-aot`: needs libtpu, and no TPU.
"""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rwkv_kernels import bi_wkv6, pallas_tpu, wkv6
from rwkv_kernels.tpu import topology

pytestmark = pytest.mark.aot

SHAPES = (
    (256, 49, 8, 80),
    (256, 196, 8, 80),
    (256, 77, 10, 64),
    (8, 1024, 8, 80),
    (1, 16384, 8, 80),
)
CHIPS = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "v4:2x2x1")  # 128, 64, 128 and 16 MiB of VMEM
HBM = {"v5e:2x2": 16e9, "v5p:2x2x1": 95e9, "v6e:2x2": 32e9, "v4:2x2x1": 32e9}


@functools.cache
def _mesh(chip: str):
    return topology.mesh(chip, devices=1)


def _compiled(chip, function, shape, dtype):
    """`function` of r, k, v, w, u and the gradient of y, all as [B, T, H * N]."""
    B, T, H, N = shape
    mesh = _mesh(chip)
    sharding = NamedSharding(mesh, PartitionSpec())
    tokens = jax.ShapeDtypeStruct((B, T, H * N), dtype, sharding=sharding)
    w = jax.ShapeDtypeStruct((B, T, H * N), jnp.float32, sharding=sharding)
    u = jax.ShapeDtypeStruct((H, N), jnp.float32, sharding=sharding)

    def flat(r, k, v, w, u):
        return function(*(x.reshape(shape) for x in (r, k, v, w)), u).reshape(B, T, H * N)

    def value_and_gradients(r, k, v, w, u, g):
        y, pullback = jax.vjp(flat, r, k, v, w, u)
        return y, pullback(g)

    with jax.set_mesh(mesh):
        return jax.jit(value_and_gradients).lower(tokens, tokens, tokens, w, u, tokens).compile()


def _kernels(compiled) -> list[str]:
    """Names of the Pallas calls in the compiled program."""
    lines = compiled.as_text().splitlines()
    return [
        re.match(r" *(?:ROOT )?%(\w+)", line)[1] for line in lines if '"tpu_custom_call"' in line
    ]


@pytest.mark.parametrize(
    ("chip", "shape"),
    [
        # Every shape for one chip, one for the others; the rest with `make test-slow`.
        pytest.param(
            chip,
            shape,
            id=f"{chip}-{shape}",
            marks=[] if chip == CHIPS[0] or shape in SHAPES[:1] else pytest.mark.slow,
        )
        for chip in CHIPS
        for shape in SHAPES
        if chip != "v4:2x2x1" or shape[1] < 100  # states do not fit: `chunked` (test_pallas_tpu.py)
    ],
)
def test_both_directions_compile(chip, shape):
    compiled = _compiled(chip, bi_wkv6, shape, jnp.bfloat16)
    kernels = _kernels(compiled)
    assert len(kernels) == (2 if shape[1] <= 256 else 4), kernels  # a sweep for each, where long
    assert compiled.memory_analysis().temp_size_in_bytes < HBM[chip]


def test_a_topology_that_nobody_knows():
    with pytest.raises(ValueError, match=r"'v99:2x2'.*names are like v5e:4x4"):
        topology.mesh("v99:2x2")


def _causal(r, k, v, w, u):
    return wkv6(r, k, v, w, u)[0]


@pytest.mark.parametrize(
    ("function", "shape", "dtype", "calls"),
    [
        (_causal, (256, 77, 10, 64), jnp.bfloat16, 2),
        (_causal, (8, 1024, 8, 80), jnp.bfloat16, 3),  # the forward pass needs no sweep
        pytest.param(  # a language model's width
            *(_causal, (4, 1024, 32, 64), jnp.bfloat16, 3), marks=pytest.mark.slow
        ),
        (bi_wkv6, (256, 49, 8, 80), jnp.float32, 2),
    ],
)
def test_what_else_compiles(function, shape, dtype, calls):
    kernels = _kernels(_compiled("v5e:2x2", function, shape, dtype))
    assert len(kernels) == calls, kernels


def _slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("chip", "function", "shape", "dtype"),
    [
        ("v6e:2x2", bi_wkv6, (8, 64, 4, 32), jnp.float32),
        ("v5e:2x2", bi_wkv6, (128, 32, 4, 32), jnp.float32),
        ("v5e:2x2", bi_wkv6, (8, 64, 16, 8), jnp.bfloat16),
        ("v4:2x2x1", bi_wkv6, (16, 64, 2, 64), jnp.float32),
        ("v4:2x2x1", bi_wkv6, (256, 7, 10, 64), jnp.bfloat16),  # not eight samples at a time
        _slow("v6e:2x2", bi_wkv6, (256, 49, 8, 80), jnp.float32),
        _slow("v6e:2x2", bi_wkv6, (256, 196, 8, 80), jnp.float32),
        _slow("v6e:2x2", bi_wkv6, (256, 77, 10, 64), jnp.float32),
        _slow("v5p:2x2x1", bi_wkv6, (256, 196, 8, 80), jnp.float32),
        _slow("v5e:2x2", bi_wkv6, (8, 49, 32, 4), jnp.float32),
        _slow("v5e:2x2", bi_wkv6, (8, 32, 32, 8), jnp.float32),
        _slow("v6e:2x2", bi_wkv6, (8, 64, 16, 16), jnp.float32),
        _slow("v5e:2x2", bi_wkv6, (8, 64, 32, 8), jnp.bfloat16),
        _slow("v4:2x2x1", _causal, (4, 512, 4, 64), jnp.float32),
        _slow("v4:2x2x1", bi_wkv6, (16, 49, 4, 64), jnp.bfloat16),
    ],
)
def test_what_is_said_to_fit_compiles(chip, function, shape, dtype):
    kind = _mesh(chip).devices.flat[0].device_kind
    assert pallas_tpu.unservable(shape, dtype, kind, causal=function is _causal) == ()
    assert _kernels(_compiled(chip, function, shape, dtype))


@pytest.mark.parametrize("precision", [None, "highest", "high"])
def test_whatever_jax_is_set_to_they_compile(precision):
    """Products of bfloat16 are taken as they are, and numbers of 64 bits are none of theirs."""
    with jax.enable_x64(precision is None), jax.default_matmul_precision(precision):
        kernels = _kernels(_compiled("v5e:2x2", bi_wkv6, (16, 20, 2, 64), jnp.bfloat16))
    assert len(kernels) == 2, kernels


def test_a_state_is_taken_apart_by_heads_alone():
    """All channels by all channels would be 16 times as much as the state."""
    B, H, N = 64, 16, 64
    mesh = _mesh("v5e:2x2")
    token = jax.ShapeDtypeStruct(
        (B, 1, H, N), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec())
    )
    w, u, state = (
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=token.sharding)
        for shape in ((B, 1, H, N), (H, N), (B, H, N, N))
    )

    def step(r, k, v, w, u, state):
        return wkv6(r, k, v, w, u, initial_state=state)

    with jax.set_mesh(mesh):
        compiled = jax.jit(step).lower(token, token, token, w, u, state).compile()
    assert len(_kernels(compiled)) == 1
    assert compiled.memory_analysis().temp_size_in_bytes < 6 * state.size * 4
