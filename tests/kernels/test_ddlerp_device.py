"""`ddlerp` on a Hopper GPU, against float64: run by `make gpu-check`."""

import ddlerp_judge
import jax
import jax.numpy as jnp
import pytest

from rwkv_kernels.ddlerp import unservable

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    ("shape", "uses", "rank"),
    [
        ((1, 640), 5, 32),
        ((1000, 64), 5, 32),
        ((3, 77, 192), 2, 64),
        ((129, 128), 3, 32),
        ((256, 49, 640), 5, 32),
        ((256, 77, 640), 5, 32),
    ],
    ids=str,
)
def test_values_and_gradients(shape, uses, rank):
    given, gradients = ddlerp_judge.inputs(shape, uses, rank)
    ddlerp_judge.check(given, gradients, jax.jit(ddlerp_judge.value_and_gradients()))


def test_it_serves_the_model():
    assert not unservable((256, 49, 640), jnp.bfloat16, (5, 32, 640))
