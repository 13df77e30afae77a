"""The gated head norm's kernels in Mosaic's interpreters, against float64."""

import functools

import head_norm_judge
import interpreter
import jax.numpy as jnp
import pytest
from interpreter import INTERPRETER, STRICT, TPU_INTERPRETER, assert_no_races

from rwkv_kernels import head_norm_gpu, head_norm_tpu
from rwkv_kernels.gpu import stream
from rwkv_kernels.head_norm import gated_head_norm, unservable


def gpu(heads, interpret=INTERPRETER):
    function = functools.partial(head_norm_gpu.gated_head_norm, interpret=interpret)
    return head_norm_judge.value_and_gradients(heads, function)


def check_on_a_tpu(heads, given):
    """The norm alone: its gate is XLA's there, in bfloat16."""
    function = functools.partial(head_norm_tpu.head_norm, interpret=TPU_INTERPRETER)
    *given, _ = given
    head_norm_judge.check(heads, given, head_norm_judge.value_and_gradients(heads, function))


@pytest.fixture
def watched(monkeypatch):
    return interpreter.watch(monkeypatch)


@pytest.mark.parametrize(
    ("shape", "heads"),
    [
        ((1, 1, 80), 1),  # one token
        ((2, 64, 128), 2),  # a whole tile a sample
        ((3, 50, 160), 2),  # three tiles, the last cut short
        ((1, 300, 96), 1),
    ],
    ids=str,
)
def test_values_and_gradients_on_a_gpu(shape, heads, watched):
    head_norm_judge.check(heads, head_norm_judge.inputs(shape), gpu(heads))
    assert_no_races(watched, kernels=2)


def test_more_tokens_than_blocks(watched, monkeypatch):
    """A block goes over several tiles, and sums up what it finds."""
    monkeypatch.setattr(stream, "_MULTIPROCESSORS", 2)
    head_norm_judge.check(2, head_norm_judge.inputs((2, 150, 128)), gpu(2))
    assert_no_races(watched, kernels=2)


def test_nothing_is_read_that_was_not_written():
    head_norm_judge.check(1, head_norm_judge.inputs((1, 128, 64)), gpu(1, STRICT))


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
def test_values_and_gradients_on_a_tpu(shape, heads, monkeypatch):
    watched = interpreter.watch_tpu(monkeypatch)
    check_on_a_tpu(heads, head_norm_judge.inputs(shape))
    assert_no_races(watched, kernels=2)


@pytest.mark.parametrize(("mean", "deviation"), [(100.0, 1.0), (0.0, 1e-4), (-3.0, 1e4)])
@pytest.mark.parametrize("device", ["gpu", "tpu"])
def test_large_means_and_odd_deviations(mean, deviation, device):
    given = head_norm_judge.inputs((1, 32, 640), mean=mean, deviation=deviation)
    if device == "gpu":
        head_norm_judge.check(8, given, gpu(8))
    else:
        check_on_a_tpu(8, given)


def test_gates_of_any_size():
    """Far beyond where the exponential ends, either way."""
    head_norm_judge.check(2, head_norm_judge.inputs((1, 64, 128), gates=300.0), gpu(2))


def test_an_error_would_be_seen():
    given = head_norm_judge.inputs((1, 16, 128))
    y, of_x, of_scale, of_bias, of_gate = head_norm_judge.float64(2, *given)
    y, of_x, of_gate = (jnp.asarray(x, jnp.bfloat16) for x in (y, of_x, of_gate))
    found = y, of_x, jnp.asarray(of_scale * 1.0001), jnp.asarray(of_bias), of_gate
    with pytest.raises(AssertionError, match="of scale"):
        head_norm_judge.check(2, given, lambda *_: found)


def test_what_the_kernels_cannot_serve():
    def misfits(*given):
        return head_norm_tpu.unservable(*given, "TPU v5e")

    assert misfits((256, 49, 640), jnp.bfloat16, 8) == ()
    assert "together are float32" in misfits((256, 49, 640), jnp.dtype("float32"), 8)[0]
    assert "D = 320 of 4 heads" in misfits((256, 49, 320), jnp.bfloat16, 4)[0]
    assert "at most 42 heads" in misfits((256, 49, 5504), jnp.bfloat16, 43)[0]
    assert "tokens (24, 49)" in misfits((24, 49, 640), jnp.bfloat16, 8)[0]
    assert "at most 11702 channels" in misfits((16, 16, 12800), jnp.bfloat16, 8)[0]

    def misfits(*given):
        return head_norm_gpu.unservable(*given, "NVIDIA H200")

    assert misfits((24, 49, 640), jnp.bfloat16, 8) == ()
    assert "together are float32" in misfits((24, 49, 640), jnp.dtype("float32"), 8)[0]
    assert "D = 256 of 8 heads" in misfits((24, 49, 256), jnp.bfloat16, 8)[0]
    assert "D = 640 of 9 heads" in misfits((24, 49, 640), jnp.bfloat16, 9)[0]
    assert "from 64 to 96" in misfits((24, 49, 640), jnp.bfloat16, 5)[0]
    assert "is empty" in misfits((0, 49, 640), jnp.bfloat16, 8)[0]
    (reason,) = head_norm_gpu.unservable((24, 49, 640), jnp.bfloat16, 8, "NVIDIA A100")
    assert reason == "it is a Hopper GPU's kernel, and this is 'NVIDIA A100'"
    (reason,) = unservable((256, 49, 640), jnp.bfloat16, 8)
    assert reason == "it is a TPU's or a Hopper GPU's kernel, and this is 'cpu'"


@pytest.mark.parametrize(
    ("gate", "scale", "bias", "message"),
    [
        ((16, 2, 128), 128, 128, r"gate must be \(16, 3, 128\) to go with x .*\(16, 2, 128\)"),
        ((16, 3, 128), 64, 128, r"scale must be \(128,\) to go with x \(16, 3, 128\), got \(64,\)"),
        ((16, 3, 128), 128, 1, r"bias must be \(128,\) .*, got \(1,\)"),
        ((16, 3, 128), 128, 128, r"no kernel serves x \(16, 3, 128\): it is a TPU's or a Hopper"),
    ],
)
def test_bad_input_is_refused(gate, scale, bias, message):
    x, gate = jnp.zeros((16, 3, 128), jnp.bfloat16), jnp.zeros(gate, jnp.bfloat16)
    with pytest.raises(ValueError, match=message):
        gated_head_norm(x, gate, jnp.zeros(scale), jnp.zeros(bias), 2, head_norm_judge.EPS)


def test_a_gate_of_another_dtype_is_refused():
    x, weights = jnp.zeros((16, 3, 128), jnp.bfloat16), jnp.zeros(128)
    with pytest.raises(ValueError, match="gate must be bfloat16 as x is, got float32"):
        gated_head_norm(x, x.astype(jnp.float32), weights, weights, 2, head_norm_judge.EPS)
