"""The WKV as matrix products in plain XLA: dyadic inside chunks, states between them.

The default wherever no kernel is faster. A short sequence is one chunk, without any state; a longer
one is scanned chunk by chunk. The gradient is analytic, saves the inputs alone, and computes the
states again. On a CPU the batch is worked off in groups so small that a group's arrays stay in the
cache (`lax.map`), which also keeps the temporary memory small.

With S the state that enters a chunk from the left, R the one that enters from the right (of the
reversed direction), `before` and `after` the products of decays to the chunk's edges, and `total`
across it:

  y += (r before) S + (r after) R,   S' = total S + (k after)^T v,   R' = total R + (k before)^T v.

Sums are float32 (float64 for float64 inputs). On accelerators, operands of matrix products are
bfloat16 where r, k and v all are, which no decay regime makes worse: all factors are at most 1.
On a CPU they are float32, which is exact and needs no conversion.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rwkv_kernels import dyadic
from rwkv_kernels.dyadic import Chunk
from rwkv_kernels.plan import Plan, plan
from rwkv_kernels.platforms import platform
from rwkv_kernels.sequences import Sequences, flatten_heads, map_groups


def bi_wkv6(
    r: Float[Array, "B T H N"],
    k: Float[Array, "B T H N"],
    v: Float[Array, "B T H N"],
    w: Float[Array, "B T H N"],
    u: Float[Array, "H N"],
) -> Float[Array, "B T H N"]:
    """Both directions; see `api.bi_wkv6`."""
    how = plan(r.shape, jnp.result_type(r, k, v), platform(), causal=False)
    return _bi_wkv6(how, r, k, v, w, u)


def wkv6(
    r: Float[Array, "B T H N"],
    k: Float[Array, "B T H N"],
    v: Float[Array, "B T H N"],
    w: Float[Array, "B T H N"],
    u: Float[Array, "H N"],
    initial_state: Float[Array, "B H N N"] | None,
) -> tuple[Float[Array, "B T H N"], Float[Array, "B H N N"]]:
    """Causal; see `api.wkv6`."""
    how = plan(r.shape, jnp.result_type(r, k, v), platform(), causal=True)
    if initial_state is None:
        B, _, H, N = r.shape
        initial_state = jnp.zeros((B, H, N, N), jnp.result_type(jnp.float32, r, k, v, w, u))
    return _wkv6(how, r, k, v, w, u, initial_state)


# --- both directions ------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _bi_wkv6(how: Plan, r, k, v, w, u):
    dtype = jnp.result_type(jnp.float32, r, k, v, w, u)

    def group(inputs):
        r, k, v, w = inputs
        sequences = Sequences(how, dtype, r, k, v, w, u)
        return sequences.restore(_bi_output(how, sequences), v.dtype)

    return map_groups(how, group, (r, k, v, w))


def _bi_wkv6_forward(how: Plan, *inputs):
    return _bi_wkv6(how, *inputs), inputs


def _bi_wkv6_backward(how: Plan, inputs, g):
    r, k, v, w, u = inputs
    dtype = jnp.result_type(jnp.float32, r, k, v, w, u)

    def group(inputs):
        r, k, v, w, g = inputs
        sequences = Sequences(how, dtype, r, k, v, w, u)
        dr, dk, dv, dlog, dbonus = _bi_gradient(how, sequences, sequences.cut(g))
        return sequences.restore_gradients(dr, dk, dv, dlog, dbonus)

    dr, dk, dv, dw, du = map_groups(how, group, (r, k, v, w, g))
    return dr, dk, dv, dw, jnp.sum(du, axis=0).astype(u.dtype)


_bi_wkv6.defvjp(_bi_wkv6_forward, _bi_wkv6_backward)


def _bi_output(how: Plan, sequences):
    if not how.stateful:
        r, k, v, decay = (x[0] for x in sequences.tokens)
        factors = dyadic.decay_factors(how.chunk, decay)
        return dyadic.output(how.chunk, r, k, v, sequences.bonus, factors)[None]

    def leftwards(R, tokens):
        _, k, v, decay = tokens
        edge = dyadic.edge_factors(how.chunk, decay)
        return _next_state(how.chunk, R, k * edge.before, v, edge.total), R

    def rightwards(S, tokens_and_R):
        (r, k, v, decay), R = tokens_and_R
        f, edge = dyadic.decay_factors(how.chunk, decay), dyadic.edge_factors(how.chunk, decay)
        y = dyadic.output(how.chunk, r, k, v, sequences.bonus, f)
        y = y + _read(how.chunk, r * edge.before, S) + _read(how.chunk, r * edge.after, R)
        return _next_state(how.chunk, S, k * edge.after, v, edge.total), y

    zero = sequences.zero_state()
    _, R = jax.lax.scan(leftwards, zero, sequences.tokens, reverse=True)
    _, y = jax.lax.scan(rightwards, zero, (sequences.tokens, R))
    return y


def _bi_gradient(how: Plan, sequences, g):
    chunk, bonus = how.chunk, sequences.bonus
    if not how.stateful:
        r, k, v, decay = (x[0] for x in sequences.tokens)
        f = dyadic.decay_factors(chunk, decay)
        dr, dk, dv, dbonus, dinside = dyadic.output_gradient(chunk, r, k, v, bonus, f, g[0])
        dlog = dyadic.log_decay_gradient(chunk, decay, dinside)
        return dr[None], dk[None], dv[None], dlog[None], dbonus

    def rightwards(carry, tokens_and_g):
        (r, k, v, decay), g = tokens_and_g
        S, dR = carry  # dR: the gradient of the state R that leaves this chunk at its left
        edge = dyadic.edge_factors(chunk, decay)
        return (
            _next_state(chunk, S, k * edge.after, v, edge.total),
            _next_state(chunk, dR, r * edge.after, g, edge.total),
        ), carry

    def leftwards(carry, tokens_g_and_states):
        (r, k, v, decay), g, (S, dR) = tokens_g_and_states
        R, dS, dbonus = carry
        f, edge = dyadic.decay_factors(chunk, decay), dyadic.edge_factors(chunk, decay)
        dr, dk, dv, dbonus_here, dinside = dyadic.output_gradient(chunk, r, k, v, bonus, f, g)
        a = _state_gradient(chunk, r, k, v, g, S, dS, edge.before, edge.after, edge.total)
        b = _state_gradient(chunk, r, k, v, g, R, dR, edge.after, edge.before, edge.total)
        dedges = dyadic.Edges(
            before=a.dlog_read + b.dlog_write,
            after=a.dlog_write + b.dlog_read,
            total=a.dlog_total + b.dlog_total,
        )
        dlog = dyadic.log_decay_gradient(chunk, decay, dinside, dedges)
        carry = (
            _next_state(chunk, R, k * edge.before, v, edge.total),
            _next_state(chunk, dS, r * edge.before, g, edge.total),
            dbonus + dbonus_here,
        )
        return carry, (dr + a.dr + b.dr, dk + a.dk + b.dk, dv + a.dv + b.dv, dlog)

    zero = sequences.zero_state()
    _, states = jax.lax.scan(rightwards, (zero, zero), (sequences.tokens, g))
    (_, _, dbonus), gradients = jax.lax.scan(
        leftwards, (zero, zero, sequences.zero_bonus()), (sequences.tokens, g, states), reverse=True
    )
    return *gradients, dbonus


# --- causal ---------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _wkv6(how: Plan, r, k, v, w, u, initial_state):
    dtype = initial_state.dtype

    def group(inputs):
        r, k, v, w, state = inputs
        sequences = Sequences(how, dtype, r, k, v, w, u)

        def rightwards(S, tokens):
            r, k, v, decay = tokens
            f, edge = dyadic.decay_factors(how.chunk, decay), dyadic.edge_factors(how.chunk, decay)
            y = dyadic.output(how.chunk, r, k, v, sequences.bonus, f)
            y = y + _read(how.chunk, r * edge.before, S)
            return _next_state(how.chunk, S, k * edge.after, v, edge.total), y

        S, y = jax.lax.scan(rightwards, flatten_heads(state), sequences.tokens)
        return sequences.restore(y, v.dtype), S.reshape(state.shape)

    return map_groups(how, group, (r, k, v, w, initial_state))


def _wkv6_forward(how: Plan, *inputs):
    return _wkv6(how, *inputs), inputs


def _wkv6_backward(how: Plan, inputs, gradients):
    r, k, v, w, u, initial_state = inputs
    chunk = how.chunk

    def group(inputs):
        r, k, v, w, state, g, dstate = inputs
        sequences = Sequences(how, initial_state.dtype, r, k, v, w, u)

        def rightwards(S, tokens):
            _, k, v, decay = tokens
            edge = dyadic.edge_factors(chunk, decay)
            return _next_state(chunk, S, k * edge.after, v, edge.total), S

        def leftwards(carry, tokens_g_and_state):
            (r, k, v, decay), g, S = tokens_g_and_state
            dS, dbonus = carry
            f, edge = dyadic.decay_factors(chunk, decay), dyadic.edge_factors(chunk, decay)
            dr, dk, dv, dbonus_here, dinside = dyadic.output_gradient(
                chunk, r, k, v, sequences.bonus, f, g
            )
            a = _state_gradient(chunk, r, k, v, g, S, dS, edge.before, edge.after, edge.total)
            dedges = dyadic.Edges(
                before=a.dlog_read,
                after=a.dlog_write,
                total=a.dlog_total,
            )
            dlog = dyadic.log_decay_gradient(chunk, decay, dinside, dedges)
            carry = _next_state(chunk, dS, r * edge.before, g, edge.total), dbonus + dbonus_here
            return carry, (dr + a.dr, dk + a.dk, dv + a.dv, dlog)

        g = sequences.cut(g)
        _, S = jax.lax.scan(rightwards, flatten_heads(state), sequences.tokens)
        (dS, dbonus), gradients = jax.lax.scan(
            leftwards,
            (flatten_heads(dstate), sequences.zero_bonus()),
            (sequences.tokens, g, S),
            reverse=True,
        )
        dr, dk, dv, dlog = gradients
        restored = sequences.restore_gradients(dr, dk, dv, dlog, dbonus)
        return *restored, dS.reshape(state.shape)

    dr, dk, dv, dw, du, dstate = map_groups(how, group, (r, k, v, w, initial_state, *gradients))
    return dr, dk, dv, dw, jnp.sum(du, axis=0).astype(u.dtype), dstate


_wkv6.defvjp(_wkv6_forward, _wkv6_backward)


# --- states between chunks ------------------------------------------------------------------------


def _read(chunk: Chunk, r, state):
    return chunk.dot("gcn,gnm->gcm", r, state)


def _next_state(chunk: Chunk, state, k, v, total):
    """total S + k^T v, where k already carries the decays to the edge that the state leaves by."""
    return total[..., None] * state + chunk.dot("gcn,gcm->gnm", k, v)


@dataclasses.dataclass(frozen=True)
class _StateGradient:
    dr: Array
    dk: Array
    dv: Array
    dlog_read: Array  # [G, C, N]: of the factors that r carries
    dlog_write: Array  # [G, C, N]: of the factors that k carries
    dlog_total: Array  # [G, N]


def _state_gradient(chunk: Chunk, r, k, v, g, state, dstate, read, write, total) -> _StateGradient:
    """What one direction's state adds: `state` enters the chunk, `dstate` is that which leaves's.

    `read` and `write` are the decays from where the state enters and to where it leaves.
    """
    dr = chunk.dot("gcm,gnm->gcn", g, state) * read
    dk = chunk.dot("gcm,gnm->gcn", v, dstate) * write
    dv = chunk.dot("gcn,gnm->gcm", k * write, dstate)
    return _StateGradient(dr, dk, dv, r * dr, k * dk, total * jnp.sum(state * dstate, axis=-1))
