"""The definition of the WKV: a `lax.scan` over time that holds one N x N state a head.

Differentiated by JAX itself, so it judges the analytic gradients too. It computes in float32, or in
float64 when an input is float64; slow and hungry, because autodiff keeps every state.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def bi_wkv6(
    r: Float[Array, "B T H N"],
    k: Float[Array, "B T H N"],
    v: Float[Array, "B T H N"],
    w: Float[Array, "B T H N"],
    u: Float[Array, "H N"],
) -> Float[Array, "B T H N"]:
    """Both directions: the causal WKV, plus the reversed one without the present token's bonus."""
    y_dtype = v.dtype
    r, k, v, w, u = _wide(r, k, v, w, u)  # once, so that no gradients are summed in bfloat16
    forward, _ = _scan(r, k, v, w, u, None, reverse=False)
    backward, _ = _scan(r, k, v, w, jnp.zeros_like(u), None, reverse=True)
    return (forward + backward).astype(y_dtype)


def wkv6(
    r: Float[Array, "B T H N"],
    k: Float[Array, "B T H N"],
    v: Float[Array, "B T H N"],
    w: Float[Array, "B T H N"],
    u: Float[Array, "H N"],
    initial_state: Float[Array, "B H N N"] | None,
) -> tuple[Float[Array, "B T H N"], Float[Array, "B H N N"]]:
    """y_t = r_t (S_t + diag(u) k_t v_t^T),  S_{t+1} = diag(d_t) S_t + k_t v_t^T."""
    y_dtype = v.dtype
    r, k, v, w, u = _wide(r, k, v, w, u)
    y, state = _scan(r, k, v, w, u, initial_state, reverse=False)
    return y.astype(y_dtype), state


def log_decay(w: Array) -> Array:
    """log d = -exp(w), finite for every w: past w = 60 the decay is 0, and exp(w) may overflow."""
    return -jnp.exp(jnp.minimum(w, 60.0))


def _wide(*arrays: Array) -> list[Array]:
    dtype = jnp.result_type(jnp.float32, *arrays)
    return [x.astype(dtype) for x in arrays]


def _scan(r, k, v, w, u, initial_state, *, reverse: bool):
    B, _, H, N = r.shape
    if initial_state is None:
        initial_state = jnp.zeros((B, H, N, N), r.dtype)

    def step(state, token):
        r_t, k_t, v_t, decay_t = token  # each [B, H, N]
        # A sum of products, not a dot: no accelerator rounds its operands to TF32 or bfloat16.
        y_t = jnp.sum(r_t[..., :, None] * state, axis=-2)
        return decay_t[..., :, None] * state + k_t[..., :, None] * v_t[..., None, :], y_t

    over_time = tuple(jnp.moveaxis(x, 1, 0) for x in (r, k, v, jnp.exp(log_decay(w))))
    state, y = jax.lax.scan(step, initial_state, over_time, reverse=reverse)
    bonus = jnp.sum(r * u * k, axis=-1, keepdims=True) * v
    return jnp.moveaxis(y, 0, 1) + bonus, state
