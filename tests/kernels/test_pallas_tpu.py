"""The TPU kernels in the TPU interpreter, against the float64 loop, watched for races.

The interpreter plays the TPU's memories and copies on a CPU; what was never written reads as NaN.
Each shape is compiled once and run in all six decay regimes. That the kernels also compile for
real TPUs is seen in `test_pallas_tpu_aot.py`.
"""

import functools

import chex
import float64_loop
import interpreter
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64_loop import REGIMES
from interpreter import TPU_INTERPRETER, assert_no_races
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from regimes import CASES, NAMES, assert_close, judged_bi, judged_causal, stacked

from rwkv_kernels import IMPLEMENTATIONS, bi_wkv6, pallas_tpu
from rwkv_kernels.api import Call
from rwkv_kernels.tpu import gentle
from rwkv_kernels.tpu.lanes import Lanes
from rwkv_kernels.tpu.levels import to_rows
from rwkv_kernels.tpu.plan import Plan, make_plan

# On two cores samples meet on what they share; slow, so only where there are more than a step's.
TWO_CORES = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)

# 196 tokens take half a minute. CI has 257 of a narrow head: more tiles, and a second span.
BI_CASES = [
    pytest.param(shape, id=str(shape), marks=pytest.mark.slow if shape == (1, 196, 1, 80) else ())
    for shape in CASES
]
# Two tiles and four, the last cut short, are among them; 257 tokens are two spans.
CAUSAL_CASES = ((1, 1, 1, 4), (2, 7, 1, 64), (1, 49, 2, 80), (1, 257, 1, 4))


@pytest.fixture(autouse=True)
def watched(monkeypatch):
    return interpreter.watch_tpu(monkeypatch)


def test_a_race_would_be_seen(watched):
    """Both cores write one block, as a gradient summed up over samples would be."""

    def kernel(x, y):
        y[...] = x[...]

    x = jnp.ones((2, 8, 128))
    jax.block_until_ready(
        pl.pallas_call(
            kernel,
            grid=(2,),
            in_specs=[pl.BlockSpec((1, 8, 128), lambda b: (b, 0, 0))],
            out_specs=pl.BlockSpec((1, 8, 128), lambda b: (0, 0, 0)),
            out_shape=jax.ShapeDtypeStruct((1, 8, 128), jnp.float32),
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
            interpret=TWO_CORES,
        )(x)
    )
    assert [state.races_found for state in watched] == [True]


def _value_and_gradients(interpret):
    def value_and_gradients(r, k, v, w, u, g):
        function = functools.partial(pallas_tpu.bi_wkv6, interpret=interpret)
        y, pullback = jax.vjp(function, r, k, v, w, u)
        return y, *pullback(g)

    return value_and_gradients


def _in_every_regime(function, names, shape):
    """One compiled function, run regime after regime: the interpreter is not vmapped."""
    x = stacked(shape)
    compiled = jax.jit(function)
    each = [compiled(*(x[name][i] for name in names)) for i in range(len(REGIMES))]
    return [np.stack(arrays) for arrays in zip(*each, strict=True)]


@pytest.mark.parametrize("shape", BI_CASES)
def test_both_directions(shape, watched):
    results = _in_every_regime(_value_and_gradients(TPU_INTERPRETER), "rkvwug", shape)
    assert_close(results, judged_bi(shape), NAMES[:6], tolerance=3e-6)
    assert_no_races(watched, kernels=len(REGIMES) * (2 if shape[1] <= 256 else 4))
    dw = results[4]
    assert not dw[:, :, 0].any(), "the decay of the first token never acts"
    assert not dw[:, :, -1].any(), "nor that of the last"
    assert dw.any() or shape[1] < 3


def test_samples_on_two_cores(watched):
    """More samples than the eight of a step, so that two cores meet on what samples share: du."""
    x = float64_loop.inputs(9, 5, 1, 4, "mixed")
    function = jax.jit(_value_and_gradients(TWO_CORES))
    results = function(*(x[name] for name in "rkvwug"))
    y, gradients = float64_loop.bi_wkv(*(x[name] for name in "rkvwu"), g=x["g"])
    for got, want in zip(results, (y, *gradients), strict=True):
        assert np.abs(got - want).max() < 3e-6 * np.abs(want).max()
    assert_no_races(watched, kernels=2)


@pytest.mark.parametrize("shape", CAUSAL_CASES, ids=str)
def test_causal_with_states(shape, watched):
    def value_and_gradients(r, k, v, w, u, state, g, dstate):
        function = functools.partial(pallas_tpu.wkv6, interpret=TPU_INTERPRETER)
        (y, final), pullback = jax.vjp(function, r, k, v, w, u, state)
        return y, final, *pullback((g, dstate))

    names = ("r", "k", "v", "w", "u", "state", "g", "dstate")
    results = _in_every_regime(value_and_gradients, names, shape)
    labels = ("y", "final state", *NAMES[1:])
    assert_close(results, judged_causal(shape), labels, tolerance=3e-6)
    assert_no_races(watched, kernels=len(REGIMES) * (2 if shape[1] <= 256 else 3))


# T tokens of the decay exp(-powers), and whether they meet at once: a tile may decay by exp(-80.4),
# and a token by exp(-2).
@pytest.mark.parametrize(
    ("T", "powers", "at_once"),
    [(64, 1.25, True), (64, 1.26, False), (26, 1.99, True), (26, 2.01, False)],
)
def test_the_bounds_of_gentle_decays(T, powers, at_once, monkeypatch):
    x = float64_loop.inputs(1, T, 1, 4, "typical")
    x["w"] = np.full_like(x["w"], np.log(powers))
    function = _value_and_gradients(TPU_INTERPRETER)
    results = jax.jit(function)(*(x[name] for name in "rkvwug"))
    y, gradients = float64_loop.bi_wkv(*(x[name] for name in "rkvwu"), g=x["g"])
    for got, want in zip(results, (y, *gradients), strict=True):
        assert np.abs(got - want).max() < 3e-6 * np.abs(want).max()

    def no_factors(edges):
        nothing = jnp.full_like(to_rows(edges.before), jnp.nan)
        return gentle.Factors(nothing, nothing)

    monkeypatch.setattr(gentle, "factors", no_factors)
    y = jax.jit(functools.partial(pallas_tpu.bi_wkv6, interpret=TPU_INTERPRETER))(
        *(x[name] for name in "rkvwu")
    )
    assert bool(jnp.isnan(y).any()) == at_once


# The first two are gentle. Where hardly more than neighbours meet, levels would round less of it.
@pytest.mark.parametrize(
    ("regime", "bound"), [("typical", 6e-3), ("strong", 8e-3), ("mixed", 6e-3)]
)
def test_bfloat16_inputs(regime, bound):
    """Operands of products are rounded to 8 bits; the largest errors seen are 5.6e-3, 6.6e-3 and
    4.1e-3 of a maximum.
    """
    x = float64_loop.inputs(1, 49, 2, 80, regime)
    r, k, v, u, g = (jnp.asarray(x[name], jnp.bfloat16) for name in "rkvug")
    w = jnp.asarray(x["w"])

    @jax.jit
    def value_and_gradients(*arguments):
        y, pullback = jax.vjp(
            functools.partial(pallas_tpu.bi_wkv6, interpret=TPU_INTERPRETER), *arguments
        )
        return y, pullback(g)

    y, gradients = value_and_gradients(r, k, v, w, u)
    chex.assert_type([y, *gradients[:3], gradients[4]], jnp.bfloat16)
    chex.assert_type(gradients[3], jnp.float32)
    rounded = [np.asarray(a, np.float32) for a in (r, k, v, w, u, g)]
    y_judge, judged = float64_loop.bi_wkv(*rounded[:5], g=rounded[5])
    for got, want in zip((y, *gradients), (y_judge, *judged), strict=True):
        error = np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max()
        assert error < bound


def test_no_decay_logit_is_too_large():
    x = float64_loop.inputs(1, 12, 1, 4, "typical")
    for step, logit in ((1, -1e4), (4, 87.0), (7, 1e4), (8, -1e4)):
        x["w"][:, step] = logit

    @jax.jit
    def value_and_gradients(*arguments):
        y, pullback = jax.vjp(
            functools.partial(pallas_tpu.bi_wkv6, interpret=TPU_INTERPRETER), *arguments
        )
        return y, *pullback(jnp.ones_like(y))

    results = value_and_gradients(*(x[name] for name in "rkvwu"))
    x["w"] = np.minimum(x["w"], 300.0)  # whose exponential is still finite in the judge's float64
    y_judge, judged = float64_loop.bi_wkv(*(x[name] for name in "rkvwu"), g=np.ones_like(x["g"]))
    for got, want in zip(results, (y_judge, *judged), strict=True):
        chex.assert_trees_all_close(np.asarray(got, np.float64), want, rtol=0, atol=2e-5)


def test_heads_share_products_and_states_as_drawn():
    """80 channels a head: heads straddle blocks of 128 lanes, and two share one product."""
    lanes = Lanes(heads=8, head_size=80, tile=64, operand_dtype="float32")
    assert lanes.channels == 640
    assert lanes.groups == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert [list(lanes.group_blocks(group)) for group in lanes.groups] == [
        [0, 1], [1, 2], [2, 3], [3, 4]
    ]  # fmt: skip
    # Head 1 lies in blocks 0 and 1, 3 in 1 and 2, 4 in 2 and 3, 6 in 3 and 4.
    assert set(lanes.state_blocks) == {(i, j) for i in range(5) for j in range(5) if abs(i - j) < 2}


def _planned(T: int, device_kind: str = "TPU v5 lite") -> Plan:
    return make_plan(T, 8, 80, jnp.bfloat16, causal=False, device_kind=device_kind)


def test_long_or_wide_sequences_are_cut_to_fit():
    assert [_planned(T).spans for T in (49, 196, 257)] == [1, 1, 2]
    spans = {"TPU v5 lite": 256, "TPU v5": 64, "TPU of tomorrow": 64}
    for kind, span in spans.items():
        wide = make_plan(1024, 48, 64, jnp.bfloat16, causal=True, device_kind=kind)
        assert wide.span == span
        assert wide.fits(2)


def test_eight_samples_at_once_where_a_chip_has_room_for_them():
    kinds = ("TPU v4", "TPU v5", "TPU7x", "cpu", "TPU v5 lite", "TPU v6 lite")
    assert [_planned(196, kind).samples for kind in kinds] == [1, 1, 1, 1, 8, 8]
    assert [_planned(49, kind).samples for kind in kinds] == [1, 8, 8, 8, 8, 8]
    assert _planned(256).samples == 1  # lies as it is read


def test_what_the_kernels_cannot_serve():
    def why_not(
        platform="tpu", shape=(1, 49, 8, 80), dtype="bfloat16", kind="TPU v5", wide="float32"
    ):
        call = Call("bi_wkv6", platform, shape, jnp.dtype(dtype), kind, jnp.dtype(wide))
        return "; ".join(IMPLEMENTATIONS["pallas_tpu"].why_not(call))

    assert why_not() == ""
    assert "a TPU's kernel" in why_not(platform="cpu")
    assert "float32 at most" in why_not(dtype="float64", wide="float64")
    assert "8192 channels need" in why_not(shape=(1, 49, 128, 64))
    assert "640 channels need 16 MiB of VMEM, of 15" in why_not(
        shape=(1, 196, 8, 80), kind="TPU v4"
    )
    arrays = [jnp.ones((1, 3, 1, 4))] * 4
    with pytest.raises(ValueError, match=r"'pallas_tpu' cannot serve .* on cpu: it is a TPU's"):
        bi_wkv6(*arrays, jnp.ones((1, 4)), implementation="pallas_tpu")
