"""What surrounds the WKV, by TPU kernels, through the real compiler: real chips, real shapes.

Run by `make test-aot`: needs libtpu, and no TPU.
"""

import functools

import ddlerp_judge
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rwkv_kernels.head_norm import gated_head_norm
from rwkv_kernels.tpu import topology

pytestmark = pytest.mark.aot

# Heads of 64 or 80; the last is a language model's width.
SHAPES = {(256, 49, 640): 8, (256, 77, 640): 10, (256, 196, 640): 8, (8, 1024, 2048): 32}
CHIPS = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "v4:2x2x1")  # 128, 64, 128 and 16 MiB of VMEM
USES, RANK = 5, 32


# In CI the least memory, and the longest rows; the rest with `make test-slow`.
OF_CI = (("v4:2x2x1", (256, 49, 640)), ("v5e:2x2", (8, 1024, 2048)))
CASES = [
    pytest.param(chip, shape, marks=[] if (chip, shape) in OF_CI else pytest.mark.slow)
    for chip in CHIPS
    for shape in SHAPES
]


def _kernels(chip, function, *arrays) -> int:
    """How many there are in the compiled program. arrays: shapes and dtypes."""
    sharding = NamedSharding(topology.mesh(chip, devices=1), PartitionSpec())
    there = (jax.ShapeDtypeStruct(*array, sharding=sharding) for array in arrays)
    with jax.set_mesh(sharding.mesh):
        return jax.jit(function).lower(*there).compile().as_text().count('"tpu_custom_call"')


@pytest.mark.parametrize(("chip", "shape"), CASES, ids=str)
def test_interpolations_compile(chip, shape):
    token, D = (shape, jnp.bfloat16), shape[-1]
    weights = ((USES, D), jnp.float32), ((USES, RANK, D), jnp.float32)
    z = (*shape[:2], USES * RANK), jnp.bfloat16
    both = ddlerp_judge.value_and_gradients()

    def flat(*arrays):
        return both(arrays[:5], arrays[5:])

    assert _kernels(chip, flat, token, token, z, *weights, *[token] * USES) == 1  # backward


@pytest.mark.parametrize(("chip", "shape"), CASES, ids=str)
def test_head_norms_compile(chip, shape):
    token, weight = (shape, jnp.bfloat16), (shape[-1:], jnp.float32)

    def both(x, gate, scale, bias, g):
        norm = functools.partial(gated_head_norm, heads=SHAPES[shape], eps=1e-5)
        y, pullback = jax.vjp(norm, x, gate, scale, bias)
        return y, pullback(g)

    assert _kernels(chip, both, token, token, weight, weight, token) == 2
