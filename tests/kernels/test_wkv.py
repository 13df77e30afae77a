"""Every implementation against the float64 loop: one test body, six decay regimes at once.

The regimes are stacked and vmapped, so that one compiled function serves all six. Compiling is
what costs here (1 to 5 s each): every T and every N is covered, not their cross product, and the
associative scan, the slowest to compile, meets a part of the cases.
"""

import functools

import chex
import float64_loop
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from regimes import CASES, NAMES, assert_close, judged_bi, judged_causal, stacked

from rwkv_kernels import bi_wkv6, plan, wkv6
from rwkv_kernels.api import Call, servable
from rwkv_kernels.dyadic import Chunk

CAUSAL_CASES = ((1, 1, 1, 4), (2, 7, 1, 64), (1, 130, 2, 80))  # the last: three chunks
IMPLEMENTATIONS = servable(Call("bi_wkv6", "cpu", (1, 1, 1, 4), jnp.dtype("float32")))
COSTLY = ("associative_scan",)


def _with_implementations(cases, few):
    """(implementation, shape) pairs: all cases, but only `few` where compiling is dear."""
    return [
        pytest.param(name, shape, id=f"{name}-{shape}")
        for name in IMPLEMENTATIONS
        for shape in (few if name in COSTLY else cases)
    ]


BI = _with_implementations(CASES, few=((1, 1, 1, 80), (2, 3, 1, 4), (1, 49, 2, 80)))
CAUSAL = _with_implementations(CAUSAL_CASES, few=((2, 7, 1, 64),))
QUICK = [name for name in IMPLEMENTATIONS if name not in COSTLY]


@functools.cache
def _bi_results(implementation: str, shape):
    """y and the gradients of r, k, v, w, u, one leading axis over the regimes."""

    def value_and_gradients(r, k, v, w, u, g):
        function = functools.partial(bi_wkv6, implementation=implementation)
        y, pullback = jax.vjp(function, r, k, v, w, u)
        return y, *pullback(g)

    x = stacked(shape)
    return jax.jit(jax.vmap(value_and_gradients))(*(x[name] for name in "rkvwug"))


@pytest.mark.parametrize(("implementation", "shape"), BI)
def test_both_directions(implementation, shape):
    results = _bi_results(implementation, shape)
    assert_close(results, judged_bi(shape), NAMES[:6], tolerance=3e-6)


@pytest.mark.parametrize(("implementation", "shape"), BI)
def test_decays_at_both_ends_never_act(implementation, shape):
    dw = np.asarray(_bi_results(implementation, shape)[4])
    assert not dw[:, :, 0].any()
    assert not dw[:, :, -1].any()
    if shape[1] > 2:
        assert dw.any()


@pytest.mark.parametrize(("implementation", "shape"), CAUSAL)
def test_causal_with_states(implementation, shape):
    def value_and_gradients(r, k, v, w, u, state, g, dstate):
        def function(r, k, v, w, u, state):
            return wkv6(r, k, v, w, u, initial_state=state, implementation=implementation)

        (y, final), pullback = jax.vjp(function, r, k, v, w, u, state)
        return y, final, *pullback((g, dstate))

    x = stacked(shape)
    names = ("r", "k", "v", "w", "u", "state", "g", "dstate")
    results = jax.jit(jax.vmap(value_and_gradients))(*(x[name] for name in names))
    labels = ("y", "final state", *NAMES[1:])
    assert_close(results, judged_causal(shape), labels, tolerance=3e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_a_batch_in_groups_is_the_batch_at_once(causal, monkeypatch):
    x = float64_loop.inputs(4, 5, 2, 8, "mixed")
    inputs = [x[name] for name in "rkvwu"]

    def value_and_gradients():
        @jax.jit
        def found(g, *inputs):
            function = wkv6 if causal else bi_wkv6
            y, pullback = jax.vjp(functools.partial(function, implementation="chunked"), *inputs)
            return y, *pullback((g, jnp.asarray(x["dstate"])) if causal else g)

        return found(x["g"], *inputs)

    at_once = value_and_gradients()
    shape = x["r"].shape
    monkeypatch.setitem(plan.UNSPLIT_BYTES, "cpu", 0)
    for group in (1, 2):
        monkeypatch.setitem(plan.GROUP_BYTES, "cpu", group * x["r"][0].nbytes)
        assert plan.plan(shape, jnp.float32, "cpu", causal=causal).group == group
        chex.assert_trees_all_close(value_and_gradients(), at_once, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_reversal_identity(implementation):
    """bi_wkv6(r, k, v, w, u) = wkv6(r, k, v, w, u) + reverse(wkv6(reverse r, k, v, w; u = 0))."""

    @jax.jit
    def both(r, k, v, w, u):
        bi = bi_wkv6(r, k, v, w, u, implementation=implementation)
        causal, _ = wkv6(r, k, v, w, u, implementation=implementation)
        backwards = (x[:, ::-1] for x in (r, k, v, w))
        reverse, _ = wkv6(*backwards, jnp.zeros_like(u), implementation=implementation)
        return bi, causal + reverse[:, ::-1]

    x = float64_loop.inputs(2, 70, 2, 8, "mixed")
    bi, summed = both(*(x[name] for name in "rkvwu"))
    chex.assert_trees_all_close(bi, summed, rtol=0, atol=2e-5)


@pytest.mark.parametrize("implementation", QUICK)
def test_a_state_handed_over_is_one_call(implementation):
    """Values and all gradients, cut at a token that is no edge of a chunk or tile."""
    x = float64_loop.inputs(1, 31, 2, 8, "mixed")
    tokens, u, state = [x[name] for name in "rkvw"], x["u"], x["state"]
    call = functools.partial(wkv6, implementation=implementation)

    def loss(y, final):
        return jnp.sum(y * x["g"]) + jnp.sum(final * x["dstate"]), (y, final)

    def whole(tokens, u, state):
        return loss(*call(*tokens, u, initial_state=state))

    def halves(tokens, u, state):
        first, middle = call(*(a[:, :12] for a in tokens), u, initial_state=state)
        second, final = call(*(a[:, 12:] for a in tokens), u, initial_state=middle)
        return loss(jnp.concatenate([first, second], axis=1), final)

    results = [
        jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2), has_aux=True))(tokens, u, state)
        for function in (whole, halves)
    ]
    ((_, outputs), gradients), ((_, cut_outputs), cut_gradients) = results
    chex.assert_trees_all_close(cut_outputs, outputs, rtol=0, atol=2e-5)
    chex.assert_trees_all_close(cut_gradients, gradients, rtol=0, atol=1e-4)


def test_no_state_is_zeros():
    x = float64_loop.inputs(1, 5, 2, 4, "typical")
    arguments = [x[name] for name in "rkvwu"]
    zeros = jnp.zeros((1, 2, 4, 4))
    chex.assert_trees_all_close(wkv6(*arguments), wkv6(*arguments, initial_state=zeros))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_inputs(implementation):
    """r, k, v, u rounded to bfloat16, w float32: sums stay float32, so the judge sees the same."""
    x = float64_loop.inputs(1, 20, 2, 16, "mixed")
    r, k, v, u, g = (jnp.asarray(x[name], jnp.bfloat16) for name in "rkvug")
    w = jnp.asarray(x["w"])

    @jax.jit
    def value_and_gradients(*arguments):
        function = functools.partial(bi_wkv6, implementation=implementation)
        y, pullback = jax.vjp(function, *arguments)
        return y, pullback(g)

    y, gradients = value_and_gradients(r, k, v, w, u)
    chex.assert_type([y, *gradients[:3], gradients[4]], jnp.bfloat16)
    chex.assert_type(gradients[3], jnp.float32)
    rounded = [np.asarray(a, np.float32) for a in (r, k, v, w, u, g)]
    y_judge, judged = float64_loop.bi_wkv(*rounded[:5], g=rounded[5])
    for got, want in zip((y, *gradients), (y_judge, *judged), strict=True):
        error = np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max()
        assert error < 4e-3  # half a unit in the last place of the bfloat16 result
    _, final = jax.eval_shape(functools.partial(wkv6, implementation=implementation), r, k, v, w, u)
    chex.assert_type(final, jnp.float32)


def test_sums_of_rounded_operands_are_not_rounded():
    a = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 64)), jnp.bfloat16)
    found = Chunk(1, 4, False, "bfloat16").dot("gcn,gdn->gcd", *[a.astype(jnp.float32)] * 2)
    wanted = np.einsum("gcn,gdn->gcd", *[np.asarray(a, np.float64)] * 2)
    chex.assert_type(found, jnp.float32)
    chex.assert_trees_all_close(np.asarray(found, np.float64), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", QUICK)
def test_float64_inputs(implementation):
    """A formula that loses digits would show here, where rounding does not hide it."""
    with jax.enable_x64(True):
        x = float64_loop.inputs(1, 23, 1, 4, "spiky")
        arguments = [jnp.asarray(x[name], jnp.float64) for name in "rkvwu"]
        function = functools.partial(bi_wkv6, implementation=implementation)
        y, pullback = jax.jit(lambda *a: jax.vjp(function, *a))(*arguments)
        gradients = pullback(jnp.asarray(x["g"], jnp.float64))
        y_judge, judged = float64_loop.bi_wkv(*(x[name] for name in "rkvwu"), g=x["g"])
        chex.assert_trees_all_close((y, gradients), (y_judge, judged), rtol=0, atol=1e-11)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_decay_logit_is_too_large(implementation):
    """exp(w) overflows float32 from 89 on; values and gradients must stay finite, and right."""
    x = float64_loop.inputs(1, 12, 1, 4, "typical")
    for step, logit in ((1, -1e4), (4, 87.0), (7, 1e4), (8, -1e4)):
        x["w"][:, step] = logit

    @jax.jit
    def value_and_gradients(*arguments):
        function = functools.partial(bi_wkv6, implementation=implementation)
        y, pullback = jax.vjp(function, *arguments)
        return y, *pullback(jnp.ones_like(y))

    results = value_and_gradients(*(x[name] for name in "rkvwu"))
    x["w"] = np.minimum(x["w"], 300.0)  # whose exponential is still finite in the judge's float64
    y_judge, judged = float64_loop.bi_wkv(*(x[name] for name in "rkvwu"), g=np.ones_like(x["g"]))
    for got, want in zip(results, (y_judge, *judged), strict=True):
        chex.assert_trees_all_close(np.asarray(got, np.float64), want, rtol=0, atol=2e-5)
