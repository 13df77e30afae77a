"""What the public functions refuse, and how they choose."""

import logging
import types

import jax
import jax.numpy as jnp
import pytest

from rwkv_kernels import (
    IMPLEMENTATIONS,
    Implementation,
    api,
    bi_wkv6,
    ddlerp,
    decay_logits,
    head_norm,
    platforms,
    without_kernels,
    wkv6,
)


def _arguments(B=2, T=5, H=2, N=8, dtype=jnp.float32):
    tokens = jnp.ones((B, T, H, N), dtype)
    return {"r": tokens, "k": tokens, "v": tokens, "w": tokens, "u": jnp.ones((H, N), dtype)}


@pytest.mark.parametrize("function", [bi_wkv6, wkv6])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": jnp.ones((2, 4, 2, 8))}, r"k must have r's shape .*\(2, 5, 2, 8\).*\(2, 4, 2, 8\)"),
        ({"w": jnp.ones((2, 5, 2, 4))}, r"w must have r's shape .*\(2, 5, 2, 8\).*\(2, 5, 2, 4\)"),
        ({"u": jnp.ones((2, 4))}, r"u must be \[H, N\] = \(2, 8\).*\(2, 4\)"),
        ({"r": jnp.ones((2, 5, 16))}, r"r must be \[B, T, H, N\], got shape \(2, 5, 16\)"),
        ({"v": jnp.ones((2, 5, 2, 8), jnp.int32)}, "v must be a floating-point array, got int32"),
        ({"r": [1.0]}, "r must be a floating-point array, got list"),
    ],
)
def test_arrays_that_disagree(function, changes, message):
    with pytest.raises(ValueError, match=message):
        function(**(_arguments() | changes))


@pytest.mark.parametrize("function", [bi_wkv6, wkv6])
def test_sizes_out_of_range(function):
    with pytest.raises(ValueError, match=r"\(2, 0, 2, 8\).*Any T >= 1 is accepted"):
        function(**_arguments(T=0))
    for N in (6, 2, 0):
        with pytest.raises(ValueError, match=f"multiple of 4, got N = {N}"):
            function(**_arguments(N=N))


@pytest.mark.parametrize(
    "state", [jnp.ones((2, 2, 8)), jnp.ones((1, 2, 8, 8)), jnp.ones((2, 2, 8, 8), jnp.bfloat16)]
)
def test_wrong_state(state):
    with pytest.raises(ValueError, match=r"must be float32 .* = \(2, 2, 8, 8\).*got") as error:
        wkv6(**_arguments(), initial_state=state)
    assert str(state.shape) in str(error.value)


def test_errors_come_before_anything_compiles():
    """Shapes are enough: no value, no trace of an implementation."""
    specs = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in _arguments(N=6).items()}
    with pytest.raises(ValueError, match="multiple of 4"):
        bi_wkv6(**specs)


def test_unknown_implementation():
    with pytest.raises(
        ValueError, match="'fast'; known: pallas_tpu, pallas_gpu, chunked, reference"
    ):
        bi_wkv6(**_arguments(), implementation="fast")


def _elsewhere():
    """A row for another platform, in front, as a kernel for an accelerator is."""

    def why_not(call: api.Call):
        reasons = [] if call.platform == "tpu" else [f"needs a TPU, this is {call.platform}"]
        reasons += [] if call.shape[3] % 16 == 0 else [f"N = {call.shape[3]} is no multiple of 16"]
        return tuple(reasons)

    def unreachable(*arguments):
        raise AssertionError("chosen although it cannot serve the call")

    return {"kernel": Implementation(unreachable, unreachable, why_not), **IMPLEMENTATIONS}


def test_fallback_logs_why(monkeypatch, caplog):
    monkeypatch.setattr(api, "IMPLEMENTATIONS", _elsewhere())
    with caplog.at_level(logging.INFO, logger="rwkv_kernels"):
        bi_wkv6(**_arguments())
    assert "chunked (not kernel: needs a TPU, this is cpu, N = 8 is no multiple" in caplog.text


def test_a_gpu_without_a_kernel_warns_once(monkeypatch, caplog):
    monkeypatch.setattr(api, "platform", lambda: "gpu")
    monkeypatch.setattr(api, "device_kind", lambda: "NVIDIA A100-SXM4-80GB")
    for _ in range(2):
        bi_wkv6(**_arguments())
    (warning,) = [x.message for x in caplog.records if x.levelno == logging.WARNING]
    assert warning.startswith("bi_wkv6 on gpu takes chunked, no kernel (not pallas_tpu: ")
    assert "not pallas_gpu: it is a Hopper GPU's kernel, and this is 'NVIDIA A100" in warning


def test_a_named_one_fails_with_every_reason(monkeypatch):
    monkeypatch.setattr(api, "IMPLEMENTATIONS", _elsewhere())
    with pytest.raises(ValueError, match=r"'kernel' cannot serve .*a TPU.*; N = 8 is no"):
        bi_wkv6(**_arguments(), implementation="kernel")


def test_chunked_is_the_default(caplog):
    with caplog.at_level(logging.INFO, logger="rwkv_kernels"):
        wkv6(**_arguments())
    assert "wkv6 (2, 5, 2, 8) float32 on cpu: chunked" in caplog.text


@pytest.mark.parametrize("name", ["r", "k", "v"])
def test_a_call_has_the_dtype_of_all_three(name):
    x = _arguments(dtype=jnp.bfloat16)
    x[name] = x[name].astype(jnp.float32)
    assert api._check("bi_wkv6", **x).dtype == jnp.float32


@pytest.mark.parametrize(("kind", "platform"), [("NVIDIA H200", "gpu"), ("TPU v5 lite", "tpu")])
def test_without_kernels_none_serves(monkeypatch, kind, platform):
    device = types.SimpleNamespace(platform=platform, device_kind=kind)
    monkeypatch.setattr(platforms, "_of_the_mesh", lambda: device)
    tokens = (2, 48, 640)

    def kernels() -> dict[str, bool]:
        call = api.Call("bi_wkv6", platform, (2, 48, 8, 80), jnp.dtype(jnp.bfloat16), kind)
        reasons = {
            "ddlerp": ddlerp.unservable(tokens, jnp.bfloat16, (5, 32, 640)),
            "head_norm": head_norm.unservable(tokens, jnp.bfloat16, 8),
            "decay_logits": decay_logits.unservable((2, 48, 64), jnp.bfloat16, (64, 640)),
        }
        return {"wkv": api.servable(call)[0] == f"pallas_{platform}"} | {
            name: not why for name, why in reasons.items()
        }

    of_hopper_alone = {"decay_logits": platform == "gpu"}
    served = {"wkv": True, "ddlerp": True, "head_norm": True} | of_hopper_alone
    assert kernels() == served
    with without_kernels():
        assert kernels() == dict.fromkeys(served, False)
        with pytest.raises(ValueError, match="kernels are switched off"):
            bi_wkv6(**_arguments(N=80), implementation=f"pallas_{platform}")
    assert kernels() == served
