"""`ddlerp` in Mosaic's interpreter, against float64, and what it refuses."""

import ddlerp_judge
import interpreter
import jax
import jax.numpy as jnp
import pytest
from interpreter import INTERPRETER, STRICT, assert_no_races

from rwkv_kernels.ddlerp import ddlerp, unservable


@pytest.fixture(autouse=True)
def watched(monkeypatch):
    return interpreter.watch(monkeypatch)


@pytest.mark.parametrize(
    ("shape", "uses", "rank"),
    [
        ((1, 64), 5, 32),  # one token
        ((64, 128), 5, 32),  # one whole tile
        ((2, 3, 25, 64), 3, 32),  # three tiles, the last cut short
        ((130, 192), 2, 64),
    ],
    ids=str,
)
def test_values_and_gradients(shape, uses, rank, watched):
    given, gradients = ddlerp_judge.inputs(shape, uses, rank)
    ddlerp_judge.check(given, gradients, ddlerp_judge.value_and_gradients(INTERPRETER))
    assert_no_races(watched, kernels=3)  # forward, by tokens, by channels


def test_nothing_is_read_that_was_not_written():
    given, gradients = ddlerp_judge.inputs((128, 128), 5, 32)
    ddlerp_judge.check(given, gradients, ddlerp_judge.value_and_gradients(STRICT))


def test_an_error_would_be_seen():
    given, gradients = ddlerp_judge.inputs((64, 64), 5, 32)
    found = ddlerp_judge.float64(given, gradients)
    found[-1] = found[-1] * 1.01
    with pytest.raises(AssertionError, match="gradient of up"):
        ddlerp_judge.check(given, gradients, lambda *_: found)


def test_gradients_have_their_inputs_dtypes():
    given, gradients = ddlerp_judge.inputs((2, 64), 2, 32)
    given[4] = given[4].astype(jnp.bfloat16)
    both = ddlerp_judge.value_and_gradients(INTERPRETER)
    found = jax.eval_shape(both, given, gradients)[2:]
    assert [x.dtype for x in found] == [x.dtype for x in given]
    assert [x.shape for x in found] == [x.shape for x in given]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: (2, 80)}, r"x must be \(2, 64\) to go with up \(2, 32, 64\) .*, got \(2, 80\)"),
        ({1: (3, 64)}, r"xx must be \(2, 64\) .*, got \(3, 64\)"),
        ({2: (2, 63)}, r"z must be \(2, 64\) .*, got \(2, 63\)"),
        ({3: (3, 64)}, r"maa must be \(2, 64\) .*, got \(3, 64\)"),
        ({4: (2, 16, 64), 2: (2, 32)}, "2 uses of rank 16, but it takes ranks of multiples of 32"),
        (dict.fromkeys((0, 1, 2), (0, 64)), r"a token at least, got shape \(0, 64\)"),
        (dict.fromkeys((0, 1, 3), (2, 80)) | {4: (2, 32, 80)}, "D = 80, but it takes"),
    ],
)
def test_what_cannot_be_served_is_refused(change, message):
    shapes = {0: (2, 64), 1: (2, 64), 2: (2, 64), 3: (2, 64), 4: (2, 32, 64)} | change
    arrays = [jnp.zeros(shapes[i], jnp.bfloat16) for i in range(5)]
    with pytest.raises(ValueError, match=message):
        ddlerp(*arrays)


def test_float32_is_refused():
    shapes = ((2, 64), (2, 64), (2, 64), (2, 64), (2, 32, 64))
    with pytest.raises(
        ValueError, match="it computes in bfloat16, and x, xx and z together are float32"
    ):
        ddlerp(*(jnp.zeros(shape) for shape in shapes))


def test_nothing_is_served_without_a_hopper_gpu():
    (reason,) = unservable(jnp.bfloat16, (5, 32, 640))
    assert "it is a Hopper GPU's kernel, and this is" in reason
