"""The Hopper kernels in Mosaic's interpreter, against the float64 loop, watched for races.

The interpreter plays a GPU's memories and copies on a CPU; it has no products of registers, which
are played by JAX's own. That the kernels also compile for a real GPU is seen in
`test_pallas_gpu_aot.py`.
"""

from collections.abc import Mapping
from typing import Any

import chex
import float64_loop
import interpreter
import jax
import jax.numpy as jnp
import pytest
from float64_loop import REGIMES
from gpu_judge import (
    assert_near,
    both_directions,
    check_both_directions,
    check_causal,
    judge_sees,
    rounded,
)
from interpreter import INTERPRETER, STRICT, assert_no_races
from jax.experimental.pallas import mosaic_gpu as plgpu
from regimes import NAMES

from rwkv_kernels import IMPLEMENTATIONS
from rwkv_kernels.api import Call
from rwkv_kernels.gpu.plan import TILE, Plan
from rwkv_kernels.gpu.sweep import Found, Sum, states
from rwkv_kernels.gpu.tiling import Tiling

# One tile, a pair, and several with states; the last full and cut short.
BI_CASES = (
    (1, 1, 1, 80),
    (2, 2, 1, 64),
    (1, 3, 1, 80),
    (1, 49, 2, 80),
    (1, 77, 1, 64),
    pytest.param((1, 77, 2, 64), marks=pytest.mark.slow),
    (1, 129, 1, 64),
    (1, 49, 1, 112),
)
CAUSAL_CASES = ((1, 1, 1, 64), (2, 7, 1, 80), (1, 77, 1, 64))


@pytest.fixture(autouse=True)
def watched(monkeypatch):
    return interpreter.watch(monkeypatch)


def kernels(T):
    """Forward and backward, with a sweep before each that reads states."""
    return 2 if T <= 128 else 3 if T <= 256 else 4


def test_a_race_would_be_seen(watched):
    """A tile is read before its copy is waited for."""

    def kernel(x, y, tile, barrier):
        plgpu.copy_gmem_to_smem(x, tile, barrier)
        tile[...] = tile[...] + 1
        plgpu.barrier_wait(barrier)
        plgpu.copy_smem_to_gmem(tile, y)
        plgpu.wait_smem_to_gmem(0)

    x = jnp.ones((64, 64))
    jax.block_until_ready(
        plgpu.kernel(
            kernel,
            out_type=jax.ShapeDtypeStruct(x.shape, x.dtype),
            scratch_types=[plgpu.SMEM(x.shape, x.dtype), plgpu.Barrier()],
            interpret=INTERPRETER,
        )(x)
    )
    assert [state.races_found for state in watched] == [True]


# Seconds each in the interpreter: the others are run by `make test-slow`. By levels, and gentle.
REGIMES_OF_CI = [
    regime if regime in ("spiky", "strong") else pytest.param(regime, marks=pytest.mark.slow)
    for regime in REGIMES
]


@pytest.mark.parametrize("regime", REGIMES_OF_CI)
@pytest.mark.parametrize("shape", BI_CASES, ids=str)
def test_both_directions(shape, regime, watched):
    check_both_directions(shape, regime, INTERPRETER)
    assert_no_races(watched, kernels(shape[1]))


# One tile, and two with states.
@pytest.mark.parametrize("regime", REGIMES_OF_CI)
@pytest.mark.parametrize("shape", [(1, 7, 1, 80), (1, 49, 2, 64), (1, 77, 1, 80)], ids=str)
def test_float32(shape, regime, watched):
    check_both_directions(shape, regime, INTERPRETER, dtype=jnp.float32)
    assert_no_races(watched, kernels=2 if shape[1] <= TILE else 4)


@pytest.mark.parametrize("shape", CAUSAL_CASES, ids=str)
def test_float32_causal_with_states(shape, watched):
    check_causal(shape, "spiky", INTERPRETER, dtype=jnp.float32)
    assert_no_races(watched, kernels=4)


@pytest.mark.slow
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 80), (1, 77, 1, 96), (1, 196, 1, 80), (1, 257, 1, 64)], ids=str
)
def test_float32_of_other_lengths(shape, regime, watched):
    check_both_directions(shape, regime, INTERPRETER, dtype=jnp.float32)
    check_causal(shape, regime, INTERPRETER, dtype=jnp.float32)
    assert_no_races(watched, kernels=4 + (2 if shape[1] <= TILE else 4))


def test_one_input_in_float32_makes_all_of_them_so(watched):
    """y and gradients are of the dtypes that came."""
    shape = (1, 7, 1, 64)
    x = rounded(shape, "typical")
    x = dict(x, r=x["r"].astype(jnp.float32))
    results = both_directions(shape, INTERPRETER)(*(x[name] for name in "rkvwug"))
    judge = judge_sees(x)
    y, gradients = float64_loop.bi_wkv(*(judge[name] for name in "rkvwu"), g=judge["g"])
    assert_near(results, (y, *gradients), NAMES[:6])
    assert_near(results[1:2], gradients[:1], "r", dtype=jnp.float32)  # not rounded to bfloat16
    chex.assert_type(results[:4], [x[name].dtype for name in "vrkv"])
    assert_no_races(watched, kernels=2)


@pytest.mark.slow
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("shape", [(1, 196, 1, 80), (1, 257, 1, 64)], ids=str)
def test_longer_sequences(shape, regime, watched):
    check_both_directions(shape, regime, INTERPRETER)
    assert_no_races(watched, kernels(shape[1]))


@pytest.mark.parametrize("T", [64, 128, pytest.param(192, marks=pytest.mark.slow)])
def test_nothing_is_read_that_was_not_written(T):
    """Of whole tiles: what was never written is NaN here, and reading beyond an array an error."""
    check_both_directions((1, T, 1, 64), "typical", STRICT)


@pytest.mark.parametrize(
    "regime", [pytest.param("typical", marks=pytest.mark.slow), "spiky", "strong"]
)
@pytest.mark.parametrize("shape", CAUSAL_CASES, ids=str)
def test_causal_with_states(shape, regime, watched):
    check_causal(shape, regime, INTERPRETER)
    assert_no_races(watched, kernels=4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("ways", [(False,), (True,), (True, False)])
def test_a_sweep_in_blocks_and_segments(ways, dtype, watched):
    """Two tiles, a segment each: the states at the borders, beside the float64 loop, of one sum,
    and of two in one call. Where it ends there is one in float32 alone.
    """
    x = rounded((1, 128, 1, 64), "typical", dtype)
    in_words = {jnp.bfloat16: 1, jnp.float32: 2}[dtype]
    k, v, w = (x[name].reshape(1, 128, 64) for name in "kvw")  # one head of [B, T, H, N]
    initial = jnp.swapaxes(x["state"], -1, -2)  # key x value -> value x key
    plan = Plan(128, 64, True, Tiling(2, 2, 1), words=in_words)
    # The second sum's keys are the first's values.
    sums = [Sum(*of, (way,), initial) for of, way in zip(((v, k), (k, v)), ways, strict=False)]
    found = jax.block_until_ready(states(plan, w, sums, interpret=INTERPRETER))
    assert_no_races(watched, kernels=2)
    judge = judge_sees(x)
    judges = judge, judge | {"k": judge["v"], "v": judge["k"]}
    for result, leftwards, of_sum in zip(found, ways, judges, strict=False):
        check_states(result, of_sum, leftwards=leftwards, dtype=dtype)


def check_states(found: Found, judge: Mapping[str, Any], *, leftwards: bool, dtype) -> None:
    """Of two tiles, at their borders and where the sweep ends."""
    turned = {name: judge[name][:, ::-1] if leftwards else judge[name] for name in "rkvw"}
    expected = [judge["state"]]
    for tokens in (64, 128):
        inputs = (turned[name][:, :tokens] for name in "rkvw")
        _, state = float64_loop.wkv(*inputs, judge["u"], judge["state"])
        expected.append(state)
    assert len(found.borders) == {jnp.bfloat16: 1, jnp.float32: 2}[dtype]
    borders = sum(x[0].astype(jnp.float32) for x in found.borders)
    got = jnp.swapaxes(borders, -1, -2)
    got = [got[:, :, border] for border in ((2, 1) if leftwards else (0, 1))]
    got.append(jnp.swapaxes(found.ends[0], -1, -2))
    assert_near(got, expected, ("first", "middle", "final"), dtype=dtype)


# Every choice once beside the defaults.
TILINGS = (Tiling(1, 2, 1), Tiling(4, 1, 1), Tiling(2, 4, 2))


@pytest.mark.slow
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("tiling", TILINGS, ids=str)
def test_tile_choices_in_every_regime(tiling, regime, watched):
    check_both_directions((1, 196, 1, 64), regime, INTERPRETER, tiling)
    check_causal((1, 196, 1, 64), regime, INTERPRETER, tiling)
    segmented = tiling.sweep_segments > 1
    assert_no_races(watched, kernels=4 + 6 if segmented else 3 + 4)


def test_no_decay_logit_is_too_large():
    x = dict(rounded((1, 12, 1, 64), "typical"))
    for step, logit in ((1, -1e4), (4, 87.0), (7, 1e4), (8, -1e4)):
        x["w"] = x["w"].at[:, step].set(logit)
    results = both_directions((1, 12, 1, 64), INTERPRETER)(*(x[name] for name in "rkvwug"))
    x["w"] = jnp.minimum(x["w"], 80.0)  # whose exponential is still finite
    judge = judge_sees(x)
    y, gradients = float64_loop.bi_wkv(*(judge[name] for name in "rkvwu"), g=judge["g"])
    assert_near(results, (y, *gradients), NAMES[:6])


def test_what_the_kernels_cannot_serve():
    def why_not(platform="gpu", shape=(1, 49, 8, 80), dtype="bfloat16", kind="NVIDIA H200"):
        call = Call("bi_wkv6", platform, shape, jnp.dtype(dtype), kind)
        return "; ".join(IMPLEMENTATIONS["pallas_gpu"].why_not(call))

    assert why_not() == ""
    assert why_not(kind="NVIDIA H100 80GB HBM3") == ""
    assert why_not(kind="NVIDIA GH200 480GB") == ""
    assert "'NVIDIA A100-SXM4-80GB'" in why_not(kind="NVIDIA A100-SXM4-80GB")
    assert "Hopper" in why_not(platform="tpu")
    assert why_not(dtype="float32") == ""
    assert "float16" in why_not(dtype="float16")
    assert "float64" in why_not(dtype="float64")
    assert "shared memory" in why_not(dtype="float32", shape=(1, 49, 8, 128))
    assert "N = 32" in why_not(shape=(1, 49, 8, 32))
    assert "N = 72" in why_not(shape=(1, 49, 8, 72))
    assert why_not(shape=(1, 49, 8, 128)) == ""
    assert "N = 144" in why_not(shape=(1, 49, 8, 144))
