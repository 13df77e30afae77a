"""`decay_logits` on a Hopper GPU, against float64: run by `make gpu-check`."""

import decay_logits_judge
import jax
import jax.numpy as jnp
import pytest

from rwkv_kernels.decay_logits import unservable

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    ("shape", "rank"),
    [
        ((1, 1, 64), 64),
        ((3, 50, 192), 32),
        ((256, 49, 640), 64),
        ((256, 77, 640), 64),
        ((64, 196, 1024), 128),
    ],
    ids=str,
)
def test_values_and_gradients(shape, rank):
    given = decay_logits_judge.inputs(shape, rank)
    decay_logits_judge.check(given, jax.jit(decay_logits_judge.value_and_gradients()))


def test_it_serves_the_model():
    assert not unservable((256, 49, 64), jnp.dtype("bfloat16"), (64, 640))
