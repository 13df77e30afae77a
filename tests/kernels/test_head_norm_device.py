"""The gated head norm on a Hopper GPU, against float64: run by `make gpu-check`."""

import head_norm_judge
import jax
import jax.numpy as jnp
import pytest

from rwkv_kernels.head_norm import unservable

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    ("shape", "heads"),
    [
        ((1, 1, 80), 1),
        ((3, 50, 160), 2),
        ((7, 300, 256), 2),
        ((256, 49, 640), 8),
        ((256, 77, 640), 10),
        ((128, 196, 640), 8),
    ],
    ids=str,
)
def test_values_and_gradients(shape, heads):
    given = head_norm_judge.inputs(shape)
    head_norm_judge.check(heads, given, jax.jit(head_norm_judge.value_and_gradients(heads)))


def test_gates_of_any_size():
    given = head_norm_judge.inputs((2, 77, 640), gates=300.0)
    head_norm_judge.check(10, given, jax.jit(head_norm_judge.value_and_gradients(10)))


def test_it_serves_the_model():
    assert not unservable((256, 49, 640), jnp.bfloat16, 8)
