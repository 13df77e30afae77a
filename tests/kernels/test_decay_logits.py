"""`decay_logits` in Mosaic's interpreter, against float64, and what it refuses."""

import functools

import decay_logits_judge
import interpreter
import jax.numpy as jnp
import pytest
from interpreter import INTERPRETER, STRICT, assert_no_races

from rwkv_kernels.decay_logits import decay_logits, misfits, unservable
from rwkv_kernels.gpu import stream


def gpu(interpret=INTERPRETER):
    return decay_logits_judge.value_and_gradients(
        functools.partial(decay_logits, interpret=interpret)
    )


@pytest.fixture
def watched(monkeypatch):
    return interpreter.watch(monkeypatch)


@pytest.mark.parametrize(
    ("shape", "rank"),
    [((1, 1, 64), 64), ((2, 64, 128), 32), ((3, 50, 192), 64), ((1, 150, 64), 128)],
    ids=str,
)
def test_values_and_gradients(shape, rank, watched):
    decay_logits_judge.check(decay_logits_judge.inputs(shape, rank), gpu())
    assert_no_races(watched, kernels=1)  # the gradient is XLA's


def test_more_tokens_than_blocks(watched, monkeypatch):
    monkeypatch.setattr(stream, "_MULTIPROCESSORS", 1)
    decay_logits_judge.check(decay_logits_judge.inputs((2, 300, 128), 64), gpu())
    assert_no_races(watched, kernels=1)


def test_nothing_is_read_that_was_not_written():
    decay_logits_judge.check(decay_logits_judge.inputs((1, 128, 64), 64), gpu(STRICT))


def test_an_error_would_be_seen():
    given = decay_logits_judge.inputs((1, 16, 64), 64)
    w, of_z, of_up, of_bias = map(jnp.asarray, decay_logits_judge.float64(*given))
    found = w * (1 + 3e-6), of_z.astype(jnp.bfloat16), of_up, of_bias
    with pytest.raises(AssertionError, match="w: "):
        decay_logits_judge.check(given, lambda *_: found)


def test_what_the_kernel_cannot_serve():
    bfloat16 = jnp.dtype("bfloat16")
    assert misfits((256, 49, 64), bfloat16, (64, 640)) == ()
    assert "z is float32" in misfits((256, 49, 64), jnp.dtype("float32"), (64, 640))[0]
    assert "a rank of 48" in misfits((256, 49, 48), bfloat16, (48, 640))[0]
    assert "D = 96" in misfits((256, 49, 64), bfloat16, (64, 96))[0]
    assert "is empty" in misfits((256, 0, 64), bfloat16, (64, 640))[0]
    (reason,) = unservable((256, 49, 64), bfloat16, (64, 640))
    assert reason == "it is a Hopper GPU's kernel, and this is 'cpu'"


@pytest.mark.parametrize(
    ("z", "up", "bias", "message"),
    [
        ((3, 32), (64, 128), 128, r"z must be \(3, 64\) to go with up \(64, 128\), got \(3, 32\)"),
        ((3, 64), (64, 128), 64, r"bias must be \(128,\) to go with up .*, got \(64,\)"),
        ((3, 64), (64, 96), 96, r"no kernel serves z \(3, 64\): D = 96"),
    ],
)
def test_bad_input_is_refused(z, up, bias, message):
    with pytest.raises(ValueError, match=message):
        decay_logits(jnp.zeros(z, jnp.bfloat16), jnp.zeros(up), jnp.zeros(bias))
