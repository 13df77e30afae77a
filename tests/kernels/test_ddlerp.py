"""`ddlerp` in Mosaic's interpreters, against float64, and what it refuses."""

import functools

import ddlerp_judge
import interpreter
import jax
import jax.numpy as jnp
import pytest
from interpreter import INTERPRETER, STRICT, TPU_INTERPRETER, assert_no_races

from rwkv_kernels import ddlerp_gpu, ddlerp_tpu
from rwkv_kernels.ddlerp import ddlerp, unservable
from rwkv_kernels.tpu.token_blocks import block_rows


def gpu(interpret=INTERPRETER):
    function = functools.partial(ddlerp_gpu.ddlerp, interpret=interpret)
    return ddlerp_judge.value_and_gradients(function)


def tpu():
    function = functools.partial(ddlerp_tpu.ddlerp, interpret=TPU_INTERPRETER)
    return ddlerp_judge.value_and_gradients(function)


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
    ddlerp_judge.check(given, gradients, gpu())
    assert_no_races(watched, kernels=3)  # forward, by tokens, by channels


@pytest.mark.parametrize(
    ("shape", "uses", "rank"),
    [
        ((1, 16, 128), 5, 32),  # one block
        ((2, 48, 128), 5, 32),  # one a sample
        ((32, 3, 256), 3, 32),  # turned: T is no multiple of 16
        ((1, 528, 128), 4, 64),  # three blocks a sample; two registers of z, full
        ((16, 7, 128), 2, 16),
        ((16, 2, 128), 3, 128),  # a use a register
    ],
    ids=str,
)
def test_values_and_gradients_on_a_tpu(shape, uses, rank, monkeypatch):
    watched = interpreter.watch_tpu(monkeypatch)
    given, gradients = ddlerp_judge.inputs(shape, uses, rank)
    ddlerp_judge.check(given, gradients, tpu())
    assert_no_races(watched, kernels=1)  # backward


def test_blocks_divide_the_tokens():
    tokens = (1, 16, 49, 77, 240, 256, 272, 528, 1024)
    assert [block_rows(n, 640) for n in tokens] == [0, 16, 0, 0, 240, 256, 16, 176, 256]
    assert block_rows(1024, channels=2048) == 64  # more would not fit into fast memory


def test_nothing_is_read_that_was_not_written():
    given, gradients = ddlerp_judge.inputs((128, 128), 5, 32)
    ddlerp_judge.check(given, gradients, gpu(STRICT))


def test_an_error_would_be_seen():
    given, gradients = ddlerp_judge.inputs((64, 64), 5, 32)
    found = ddlerp_judge.float64(given, gradients)
    found[-1] = found[-1] * 1.01
    with pytest.raises(AssertionError, match="gradient of up"):
        ddlerp_judge.check(given, gradients, lambda *_: found)


def test_gradients_have_their_inputs_dtypes():
    given, gradients = ddlerp_judge.inputs((16, 3, 128), 2, 32)
    given[4] = given[4].astype(jnp.bfloat16)
    for both in (gpu(), tpu()):
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
        (dict.fromkeys((0, 1, 2), (0, 64)), r"a token at least, got shape \(0, 64\)"),
        ({}, "it is a TPU's or a Hopper GPU's kernel, and this is 'cpu'"),
    ],
)
def test_what_cannot_be_served_is_refused(change, message):
    shapes = {0: (2, 64), 1: (2, 64), 2: (2, 64), 3: (2, 64), 4: (2, 32, 64)} | change
    arrays = [jnp.zeros(shapes[i], jnp.bfloat16) for i in range(5)]
    with pytest.raises(ValueError, match=message):
        ddlerp(*arrays)


@pytest.mark.parametrize("odd", range(3))
def test_tokens_and_choices_of_two_dtypes_are_refused(odd):
    dtypes = [jnp.float32 if i == odd else jnp.bfloat16 for i in range(3)]
    tokens = [jnp.zeros((2, 64), dtype) for dtype in dtypes]
    got = ", ".join(str(x.dtype) for x in tokens)
    with pytest.raises(ValueError, match=f"x, xx and z must be of one dtype, got {got}"):
        ddlerp(*tokens, jnp.zeros((2, 64)), jnp.zeros((2, 32, 64)))


def test_what_no_kernel_of_a_gpu_serves():
    def why_not(shape=(2, 9, 640), dtype=jnp.bfloat16, up=(5, 32, 640), kind="NVIDIA H200"):
        return "; ".join(ddlerp_gpu.unservable(shape, dtype, up, kind))

    assert why_not() == ""
    assert "x, xx and z together are float32" in why_not(dtype=jnp.dtype("float32"))
    assert "D = 80, but it takes multiples of 64" in why_not(up=(5, 32, 80))
    assert "5 uses of rank 16, but it takes ranks of multiples of 32" in why_not(up=(5, 16, 640))
    assert "Hopper GPU's kernel, and this is 'NVIDIA A100'" in why_not(kind="NVIDIA A100")


def test_what_no_kernel_of_a_tpu_serves():
    def why_not(shape=(16, 49, 640), dtype=jnp.bfloat16, up=(5, 32, 640)):
        return "; ".join(ddlerp_tpu.unservable(shape, dtype, up, "TPU v5e"))

    assert why_not() == ""
    assert why_not(shape=(1, 1024, 640)) == ""
    assert "x, xx and z together are float32" in why_not(dtype=jnp.dtype("float32"))
    assert "tokens (24, 49) of 640 channels, but it takes [B, T]" in why_not(shape=(24, 49, 640))
    assert "tokens (512,) of 640 channels, but it takes [B, T]" in why_not(shape=(512, 640))
    assert "D = 320 and 5 uses" in why_not(up=(5, 32, 320))
    assert "uses of rank 24" in why_not(up=(5, 24, 640))


def test_nothing_is_served_on_a_cpu():
    (reason,) = unservable((16, 49, 640), jnp.bfloat16, (5, 32, 640))
    assert reason == "it is a TPU's or a Hopper GPU's kernel, and this is 'cpu'"
