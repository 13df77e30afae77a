"""The backward kernel: all gradients, span by span from the right."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from rwkv_kernels.tpu import states, tile
from rwkv_kernels.tpu.call import Edges, Operand, Span, Specs, edges, kernel_call, state_mask
from rwkv_kernels.tpu.plan import Plan


def backward(
    plan: Plan,
    r: Float[Array, "B T C"],
    k: Float[Array, "B T C"],
    v: Float[Array, "B T C"],
    w: Float[Array, "B T C"],
    u: Float[Array, "1 C"],
    g: Float[Array, "B T C"],
    S_entering: Float[Array, "B spans P 128 128"] | None,
    dR_entering: Float[Array, "B spans P 128 128"] | None,
    dfinal: Float[Array, "B P 128 128"] | None,
    *,
    interpret=False,
) -> dict[str, Array]:
    """Gradients dr, dk, dv, dw [B, T, C], du [B, 1, C], and dinitial of a causal call.

    S_entering: what enters each span from the left; dR_entering: the gradient of the state that
    leaves each span at its left, both directions only; None where there is one span, and then
    both are zeros. dfinal: the gradient of a causal call's final state.
    """
    B = r.shape[0]
    specs = Specs(plan, leftwards=True)
    tokens = dict(zip("rkvwg", (r, k, v, w, g), strict=True))
    inputs = {
        **{name: specs.tokens(x) for name, x in tokens.items()},
        "u": Operand(u, specs.bonus),
    }
    outputs = {
        f"d{name}": specs.tokens(jax.ShapeDtypeStruct(x.shape, x.dtype))
        for name, x in tokens.items()
        if name != "g"
    }
    du = jax.ShapeDtypeStruct((B, *u.shape), jnp.float32)
    outputs["du"] = specs.bonus_gradient(du)
    scratch: dict[str, tuple[int, ...]] = {}
    if plan.stateful:
        inputs |= state_mask(plan, specs)
        scratch |= {"S": (len(plan.tiles), *plan.state_shape), "dS": plan.state_shape}
        if not plan.causal:
            scratch |= {"dR": (len(plan.tiles), *plan.state_shape), "R": plan.state_shape}
    if S_entering is not None:
        inputs["S_entering"] = Operand(S_entering, specs.states)
    if dR_entering is not None:
        inputs["dR_entering"] = Operand(dR_entering, specs.states)
    if dfinal is not None:
        inputs["dfinal"] = Operand(dfinal, specs.state)
        dinitial = jax.ShapeDtypeStruct(dfinal.shape, jnp.float32)
        outputs["dinitial"] = Operand(dinitial, specs.state)

    def body(**refs):
        _kernel(plan, specs, **refs)

    return kernel_call(
        body, plan, B, inputs, outputs, scratch,
        name="wkv6_backward" if plan.causal else "bi_wkv6_backward",
        products=12 + 12 * plan.stateful, interpret=interpret,
    )  # fmt: skip


def _kernel(
    plan: Plan, specs: Specs, r, k, v, w, g, u, dr, dk, dv, dw, du,
    mask=None, S_entering=None, dR_entering=None, dfinal=None, dinitial=None,
    S=None, dS=None, dR=None, R=None,
) -> None:  # fmt: skip
    lanes, last = plan.lanes, len(plan.tiles) - 1
    step = pl.program_id(1)
    span = Span(plan, specs.span(step))
    ends_are_zero = plan.spans == 1 and not plan.causal

    @pl.when(step == 0)
    def _():
        du[...] = jnp.zeros_like(du)
        if plan.stateful and not ends_are_zero:
            dS[...] = jnp.zeros_like(dS) if dfinal is None else dfinal[0]
            if R is not None:
                R[...] = jnp.zeros_like(R)

    if plan.stateful:  # the states that enter each tile from the left
        if S_entering is not None:
            S[0] = S_entering[0, 0]
        if dR_entering is not None:
            dR[0] = dR_entering[0, 0]
        for i in range(last):
            at = edges(span.tile(i), jnp.exp(span.load_log_decay(w, i)))
            outermost = ends_are_zero and i == 0
            for state, key, value in ((S, k, v), (dR, r, g)):
                if state is not None:
                    source = None if outermost else state.at[i]
                    key_, value_ = span.load(key, i) * at.after, span.load(value, i)
                    states.advance(lanes, source, state.at[i + 1], mask, key_, value_, at.total)

    for i in range(last, -1, -1):
        r_, k_, v_, g_ = (span.load(x, i) for x in (r, k, v, g))
        log_d = span.load_log_decay(w, i)
        d, level = tile.output_gradient(span.tile(i), r_, k_, v_, u[...], jnp.exp(log_d), g_)
        at = Edges.of(level)
        grads, dlog = _Sums(d.r, d.k, d.v), d.log_decay
        if plan.stateful:
            # None is a state of zeros.
            from_left = not (ends_are_zero and i == 0)
            from_right = not (ends_are_zero and i == last)
            S_, dR_ = (x.at[i] if x is not None and from_left else None for x in (S, dR))
            R_, dS_ = (x if from_right else None for x in (R, dS))
            grads.add_state(
                lanes, r_, k_, v_, g_, S_, dS_, at.before, at.after, at.total, rightwards=True
            )
            grads.add_state(
                lanes, r_, k_, v_, g_, R_, dR_, at.after, at.before, at.total, rightwards=False
            )
            if not (ends_are_zero and i == 0):
                for state, source, key, value in ((R, R_, k_, v_), (dS, dS_, r_, g_)):
                    if state is not None:
                        states.advance(lanes, source, state, mask, key * at.before, value, at.total)
            dlog += tile.log_decay_gradient(span.tile(i), grads.before, grads.after, grads.total)
        dw_ = dlog * log_d  # d log_d / dw = log_d
        for ref, x in ((dr, grads.r), (dk, grads.k), (dv, grads.v), (dw, dw_)):
            ref[0, span.rows(i), :] = x.astype(ref.dtype)
        du[0] += d.u

    if dinitial is not None:

        @pl.when(step == plan.spans - 1)
        def _():
            dinitial[0] = dS[...]


class _Sums:
    """A tile's gradients while they are being summed; of edges, those of logarithms."""

    def __init__(self, r, k, v):
        self.r, self.k, self.v = r, k, v
        self.before, self.after = jnp.zeros_like(r), jnp.zeros_like(r)
        self.total = jnp.zeros_like(r[:1])

    def add_state(self, lanes, r, k, v, g, state, dstate, read, write, total, *, rightwards):
        """What one direction's state adds: `state` enters the tile, `dstate` is of what leaves it.

        `read` and `write` are the decays from where the state enters and to where it leaves.
        """
        if state is not None:
            dr = states.read_back(lanes, g, state) * read
            self.r += dr
            self._edge(r * dr, before=rightwards)
        if dstate is not None:
            dk = states.read_back(lanes, v, dstate) * write
            self.k += dk
            self.v += states.read(lanes, k * write, dstate)
            self._edge(k * dk, before=not rightwards)
        if state is not None and dstate is not None:
            self.total += total * states.decay_gradient(lanes, state, dstate)

    def _edge(self, dlog, *, before: bool):
        if before:
            self.before += dlog
        else:
            self.after += dlog
