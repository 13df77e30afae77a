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


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_other_platforms_keep_their_own(platform: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "platform", lambda: platform)
    assert compiler_options() == {}
