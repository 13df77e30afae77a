"""The WKV as a `jax.lax.associative_scan` over (decay, k v^T) pairs: parallel, all states held.

The rival that comes to mind first: O(log T) depth, but T states of N x N in memory, many times over
when differentiated. Kept for comparison and as a second, independent way to the same numbers.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rwkv_kernels.reference import log_decay


def bi_wkv6(
    r: Float[Array, "B T H N"],
    k: Float[Array, "B T H N"],
    v: Float[Array, "B T H N"],
    w: Float[Array, "B T H N"],
    u: Float[Array, "H N"],
) -> Float[Array, "B T H N"]:
    """Both directions: what is read at t is the state before t plus the reversed state after t."""
    r, k, decay, kv, u, dtype = _pairs(r, k, v, w, u)
    before = _shift(_states(decay, kv, reverse=False), 1)
    after = _shift(_states(decay, kv, reverse=True), -1)
    return _read(r, before + after + u[..., None] * kv).astype(dtype)


def wkv6(
    r: Float[Array, "B T H N"],
    k: Float[Array, "B T H N"],
    v: Float[Array, "B T H N"],
    w: Float[Array, "B T H N"],
    u: Float[Array, "H N"],
    initial_state: Float[Array, "B H N N"] | None,
) -> tuple[Float[Array, "B T H N"], Float[Array, "B H N N"]]:
    """Causal; the initial state enters through the first token's pair."""
    r, k, decay, kv, u, dtype = _pairs(r, k, v, w, u)
    if initial_state is None:
        initial_state = jnp.zeros_like(kv[:, 0])
    states = _states(
        decay, kv.at[:, 0].add(decay[:, 0, ..., None] * initial_state), reverse=False
    )  # [B, T, H, N, N], S_1 .. S_T
    before = jnp.concatenate([initial_state[:, None], states[:, :-1]], axis=1)
    return _read(r, before + u[..., None] * kv).astype(dtype), states[:, -1]


def _pairs(r, k, v, w, u):
    dtype = jnp.result_type(jnp.float32, r, k, v, w, u)
    y_dtype = v.dtype
    r, k, v, w, u = (jnp.asarray(x, dtype) for x in (r, k, v, w, u))
    kv = k[..., :, None] * v[..., None, :]  # [B, T, H, N, N]
    return r, k, jnp.exp(log_decay(w)), kv, u, y_dtype


def _states(decay, kv, *, reverse: bool):
    def combine(first, second):
        decay_1, state_1 = first
        decay_2, state_2 = second
        return decay_1 * decay_2, decay_2[..., None] * state_1 + state_2

    return jax.lax.associative_scan(combine, (decay, kv), axis=1, reverse=reverse)[1]


def _shift(states, by: int):
    """states[t - by], zero beyond the ends."""
    zero = jnp.zeros_like(states[:, :1])
    parts = [zero, states[:, :-1]] if by > 0 else [states[:, 1:], zero]
    return jnp.concatenate(parts, axis=1)


def _read(r, states):
    # A sum of products, not a dot: no accelerator rounds its operands to TF32 or bfloat16.
    return jnp.sum(r[..., :, None] * states, axis=-2)
