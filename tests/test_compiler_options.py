"""How a step is compiled, by platform and by what XLA_FLAGS says."""

import jax
import pytest

from rwkv_jax import compiler_options as module
from rwkv_jax.compiler_options import compiler_options


def test_xla_knows_the_options(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    options = compiler_options()
    assert ("xla_backend_optimization_level" in options) == (jax.__version_info__ < (0, 11))
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2


def test_what_xla_flags_says_stands(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    expected = compiler_options()
    expected.pop("xla_backend_optimization_level", None)
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    assert compiler_options() == expected


def test_a_gpu_has_options_of_its_own(monkeypatch: pytest.MonkeyPatch):
    """That XLA knows them is seen where a step is compiled for one (tests/training/*_aot.py)."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(module, "platform", lambda: "gpu")
    options = compiler_options()
    assert options
    assert all(name.startswith("xla_gpu_") for name in options)
    name = next(iter(options))
    monkeypatch.setenv("XLA_FLAGS", f"--{name}=true")
    assert set(options) - set(compiler_options()) == {name}


def test_a_tpu_keeps_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "platform", lambda: "tpu")
    assert compiler_options() == {}
