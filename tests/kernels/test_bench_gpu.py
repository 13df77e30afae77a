"""The page that the GPU benchmark writes, from times that are given here."""

import math

import jax
import jax.numpy as jnp
import pytest

from rwkv_kernels import bench_gpu
from rwkv_kernels.gpu import gentle
from rwkv_kernels.shapes import WkvShape

SHAPE = WkvShape("tiny", 2, 7, 1, 64)


@pytest.fixture
def page(monkeypatch):
    """Of a kernel of 1 and 3 ms, one that does not fit, and a rival of 2 and 9 ms."""
    monkeypatch.setattr(bench_gpu, "implementations", lambda *_: ["pallas_gpu", "chunked"])
    monkeypatch.setattr(bench_gpu, "timed", lambda ms, *_: bench_gpu.Time(ms, {"wkv6": ms}))
    too_large = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room\nfor it")
    programs = {
        ("pallas_gpu", 5): 1.0, ("pallas_gpu", 6): 3.0, ("chunked", 5): 4.0,
        ("chunked", 6): too_large,
    }  # fmt: skip
    programs = {(SHAPE.name, "bfloat16", *key): program for key, program in programs.items()}
    rivals = {"a rival": [2.0, 9.0]}
    return "\n".join(bench_gpu.table(SHAPE, "bfloat16", programs, rivals, calls=2))


def test_backward_is_what_both_take_more_than_forward(page):
    assert "| pallas_gpu | 1.000 | 2.000 | 3.000 |" in page
    assert "Kernels, both: wkv6 3.000." in page


def test_strong_decays_are_timed_beside_those_of_a_fresh_model(page, monkeypatch):
    assert "| pallas_gpu, strong decays | 1.000 | 2.000 | 3.000 |" in page
    seen = []

    def timed(ms, inputs, calls):
        seen.append(float(jnp.exp(inputs[3]).max()))
        return bench_gpu.Time(ms, {})

    monkeypatch.setattr(bench_gpu, "timed", timed)
    names = ("pallas_gpu", "chunked")
    programs = {
        (SHAPE.name, dtype, name, n): 1.0
        for dtype in ("bfloat16", "float32") for name in names for n in (5, 6)
    }  # fmt: skip
    bench_gpu.table(SHAPE, "bfloat16", programs, {}, calls=2)
    limit = -gentle.LEAST * math.log(2)  # of exp(w), beyond which no tile is gentle
    assert [largest > limit for largest in seen] == [False, False, True, True, False, False]
    seen.clear()
    bench_gpu.table(SHAPE, "float32", programs, {}, calls=2)  # which takes levels in any case
    assert [largest > limit for largest in seen] == 4 * [False]


def test_rivals_are_compared_forward_and_both(page):
    (row,) = (line for line in page.splitlines() if line.startswith("| a rival"))
    assert row.endswith("| 2.0 / 3.0 |")


def test_what_fails_is_left_out_and_said(page):
    assert "| chunked" not in page
    assert page.endswith("Left out: chunked, RESOURCE_EXHAUSTED: no room")
