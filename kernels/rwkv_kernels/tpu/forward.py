"""The forward kernel: y, span by span from the left, and the state that a causal call hands on."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from rwkv_kernels.tpu import states, tile
from rwkv_kernels.tpu.call import Edges, Operand, Span, Specs, edges, kernel_call, state_mask
from rwkv_kernels.tpu.plan import Plan


def forward(
    plan: Plan,
    r: Float[Array, "B T C"],
    k: Float[Array, "B T C"],
    v: Float[Array, "B T C"],
    w: Float[Array, "B T C"],
    u: Float[Array, "1 C"],
    entering: Array | None,
    *,
    interpret=False,
) -> tuple[Float[Array, "B T C"], Float[Array, "B P 128 128"] | None]:
    """y, and the final state of a causal call.

    entering: causal, the initial state [B, P, 128, 128]; both directions and more than one span,
    the states [B, spans, P, 128, 128] that enter each span from the right; else None.
    """
    B = r.shape[0]
    specs = Specs(plan, leftwards=False)
    inputs = {
        **{name: specs.tokens(x) for name, x in zip("rkvw", (r, k, v, w), strict=True)},
        "u": Operand(u, specs.bonus),
    }
    outputs = {"y": specs.tokens(jax.ShapeDtypeStruct(v.shape, v.dtype))}
    scratch: dict[str, tuple[int, ...]] = {}
    if plan.stateful:
        inputs |= state_mask(plan, specs)
        scratch["S"] = plan.state_shape
        if not plan.causal:
            scratch["R"] = (len(plan.tiles), *plan.state_shape)
    if entering is not None:
        inputs["entering"] = Operand(entering, specs.state if plan.causal else specs.states)
    if plan.causal:
        final = jax.ShapeDtypeStruct((B, *plan.state_shape), jnp.float32)
        outputs["final"] = Operand(final, specs.state)

    def body(**refs):
        _kernel(plan, **refs)

    results = kernel_call(
        body, plan, B, inputs, outputs, scratch,
        name="wkv6_forward" if plan.causal else "bi_wkv6_forward",
        products=4 + 4 * plan.stateful, interpret=interpret,
    )  # fmt: skip
    return results["y"], results.get("final")


def _kernel(
    plan: Plan, r, k, v, w, u, y, mask=None, entering=None, final=None, S=None, R=None
) -> None:
    lanes, last = plan.lanes, len(plan.tiles) - 1
    span = Span(plan, pl.program_id(1))
    # With one span and both directions, the outer states are zeros: None.
    ends_are_zero = plan.spans == 1 and not plan.causal
    if plan.stateful and not ends_are_zero:

        @pl.when(span.index == 0)
        def _():
            S[...] = entering[0] if plan.causal else jnp.zeros_like(S)

    if R is not None:  # the state that enters each tile from the right
        if entering is not None:
            R[last] = entering[0, 0]
        for i in range(last, 0, -1):
            at = edges(span.tile(i), jnp.exp(span.load_log_decay(w, i)))
            source = None if ends_are_zero and i == last else R.at[i]
            key = span.load(k, i) * at.before
            states.advance(lanes, source, R.at[i - 1], mask, key, span.load(v, i), at.total)

    for i in range(len(plan.tiles)):
        r_, k_, v_ = (span.load(x, i) for x in (r, k, v))
        decay = jnp.exp(span.load_log_decay(w, i))
        out, level = tile.output(span.tile(i), r_, k_, u[...], decay, lanes.stack(v_))
        at = Edges.of(level)
        from_left = S is not None and not (ends_are_zero and i == 0)
        from_right = R is not None and not (ends_are_zero and i == last)
        if from_left:
            out += states.read(lanes, r_ * at.before, S)
        if from_right:
            out += states.read(lanes, r_ * at.after, R.at[i])
        if S is not None and not (ends_are_zero and i == last):
            source = S if from_left else None
            states.advance(lanes, source, S, mask, k_ * at.after, v_, at.total)
        y[0, span.rows(i), :] = out.astype(y.dtype)

    if final is not None:

        @pl.when(span.index == plan.spans - 1)
        def _():
            final[0] = S[...]
