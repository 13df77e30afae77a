"""The states at the borders of spans: one pass over a long sequence that makes nothing else."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from rwkv_kernels.tpu import states
from rwkv_kernels.tpu.call import Operand, Span, Specs, edges, kernel_call, state_mask
from rwkv_kernels.tpu.plan import Plan


def entering_states(
    plan: Plan,
    pairs: list[tuple[Float[Array, "B T C"], Float[Array, "B T C"]]],
    w: Float[Array, "B T C"],
    initial: Float[Array, "B P 128 128"] | None = None,
    *,
    leftwards: bool,
    interpret=False,
) -> list[Float[Array, "B spans P 128 128"]]:
    """For each (key, value), the state that enters each span from where the sweep comes from.

    initial: what enters the first span, for all pairs; None is zeros.
    """
    B = w.shape[0]
    specs = Specs(plan, leftwards)
    inputs = {"w": specs.tokens(w), **state_mask(plan, specs)}
    outputs, scratch = {}, {}
    for n, (key, value) in enumerate(pairs):
        inputs |= {f"key{n}": specs.tokens(key), f"value{n}": specs.tokens(value)}
        entering = jax.ShapeDtypeStruct((B, plan.spans, *plan.state_shape), jnp.float32)
        outputs[f"entering{n}"] = Operand(entering, specs.states)
        scratch[f"state{n}"] = plan.state_shape
    if initial is not None:
        inputs["initial"] = Operand(initial, specs.state)

    def body(*, w, mask, initial=None, **refs):
        span = Span(plan, specs.span(pl.program_id(1)))
        order = range(len(plan.tiles))

        @pl.when(pl.program_id(1) == 0)
        def _():
            for n in range(len(pairs)):
                state = refs[f"state{n}"]
                state[...] = jnp.zeros_like(state) if initial is None else initial[0]

        for n in range(len(pairs)):
            refs[f"entering{n}"][0, 0] = refs[f"state{n}"][...]
        for i in reversed(order) if leftwards else order:
            at = edges(span.tile(i), jnp.exp(span.load_log_decay(w, i)))
            to_edge = at.before if leftwards else at.after
            for n in range(len(pairs)):
                key, value = (span.load(refs[f"{x}{n}"], i) for x in ("key", "value"))
                state = refs[f"state{n}"]
                states.advance(plan.lanes, state, state, mask, key * to_edge, value, at.total)

    results = kernel_call(
        body, plan, B, inputs, outputs, scratch,
        name="wkv6_states", products=2 * len(pairs), interpret=interpret,
    )  # fmt: skip
    return [results[f"entering{n}"] for n in range(len(pairs))]
