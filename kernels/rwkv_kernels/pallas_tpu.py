"""The WKV as fused Pallas kernels for TPUs: the dyadic form, in the layout that a model works in.

What is unusual: [B, T, H, N] is only a view. Kernels see [B, T, H * N], which is what a model's
projections make and take, so that no array is laid out anew around a call; heads are told apart by
masks (`tpu/lanes.py`). Nothing but the inputs is saved for the gradient.

Up to 256 tokens of a sequence are in fast memory at once, and a sequence no longer than that meets
no state outside. A longer one is swept once for the states at the borders of its spans.

A tile whose decays are gentle, as most are, needs no levels: it is asked while the kernel runs.

The way through `tpu/`: plan (how a call is cut) -> call, turn (how tokens come in) -> forward,
backward, sweep (the three kernels) -> tile (tokens among themselves), states (between tiles) ->
gentle, levels (products of decays), lanes (products by head).

Sums are float32. Operands of products are bfloat16 where r, k and v all are; else float32, by
six passes of the matrix unit.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rwkv_kernels.platforms import device_kind
from rwkv_kernels.tpu import states
from rwkv_kernels.tpu.backward import backward
from rwkv_kernels.tpu.forward import forward
from rwkv_kernels.tpu.plan import Plan, make_plan, too_old
from rwkv_kernels.tpu.sweep import entering_states

_DTYPES = (jnp.dtype("bfloat16"), jnp.dtype("float32"))


def bi_wkv6(
    r: Float[Array, "B T H N"],
    k: Float[Array, "B T H N"],
    v: Float[Array, "B T H N"],
    w: Float[Array, "B T H N"],
    u: Float[Array, "H N"],
    *,
    interpret=False,
) -> Float[Array, "B T H N"]:
    """Both directions; see `api.bi_wkv6`. `interpret` is passed on to `pallas_call`."""
    r, k, v, w, u = map(_as_tpus_load, (r, k, v, w, u))
    plan = _plan(r, k, v, causal=False)
    y = _bi_wkv6(plan, interpret, *(_flat(plan, x) for x in (r, k, v, w)), _flat(plan, u[None]))
    return _heads(y, r.shape)


def wkv6(
    r: Float[Array, "B T H N"],
    k: Float[Array, "B T H N"],
    v: Float[Array, "B T H N"],
    w: Float[Array, "B T H N"],
    u: Float[Array, "H N"],
    initial_state: Float[Array, "B H N N"] | None,
    *,
    interpret=False,
) -> tuple[Float[Array, "B T H N"], Float[Array, "B H N N"]]:
    """Causal; see `api.wkv6`. `interpret` is passed on to `pallas_call`."""
    r, k, v, w, u = map(_as_tpus_load, (r, k, v, w, u))
    plan = _plan(r, k, v, causal=True)
    B = r.shape[0]
    if initial_state is None:
        initial = jnp.zeros((B, *plan.state_shape), jnp.float32)
    else:
        initial = states.from_heads(plan.lanes, initial_state)
    inputs = (_flat(plan, x) for x in (r, k, v, w))
    y, final = _wkv6(plan, interpret, *inputs, _flat(plan, u[None]), initial)
    return _heads(y, r.shape), states.to_heads(plan.lanes, final)


def unservable(
    shape: tuple[int, int, int, int], dtype, device_kind: str, *, causal: bool
) -> tuple[str, ...]:
    """Every reason why the kernels cannot serve [B, T, H, N] on a TPU of that name; nothing if they
    can. dtype: of r, k and v together.
    """
    if reasons := too_old(device_kind):
        return reasons
    if dtype not in _DTYPES:
        known = " or ".join(map(str, _DTYPES))
        return (f"it takes {known}, and r, k, v together are {dtype}",)
    _, T, H, N = shape
    plan = make_plan(T, H, N, dtype, causal=causal, device_kind=device_kind)
    itemsize = jnp.dtype(dtype).itemsize
    if plan.fits(itemsize):
        return ()
    return (
        f"H * N = {H * N} channels need {plan.vmem_bytes(itemsize) / 2**20:.0f} MiB of VMEM, "
        f"of {plan.vmem / 2**20:.0f} that a kernel may take",
    )


def _as_tpus_load(x: Array) -> Array:
    """float16, which they do not, beside something else."""
    return x.astype(jnp.float32) if x.dtype == jnp.float16 else x


def _plan(r, k, v, *, causal: bool) -> Plan:
    _, T, H, N = r.shape
    dtype = jnp.result_type(r, k, v)
    return make_plan(T, H, N, dtype, causal=causal, device_kind=device_kind())


def _flat(plan: Plan, x: Float[Array, "*B H N"]) -> Float[Array, "*B C"]:
    """Heads and channels on lanes, filled up to whole blocks of 128."""
    H, N = x.shape[-2:]
    x = x.reshape(*x.shape[:-2], H * N)  # [*B, H, N] -> [*B, H * N]
    padding = plan.lanes.channels - H * N
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)]) if padding else x


def _heads(x: Float[Array, "B T C"], shape: tuple[int, ...]) -> Float[Array, "B T H N"]:
    return x[..., : shape[2] * shape[3]].reshape(shape)  # [B, T, H * N] -> [B, T, H, N]


# --- both directions ------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _bi_wkv6(plan: Plan, interpret, r, k, v, w, u):
    R = None
    if plan.spans > 1:
        (R,) = entering_states(plan, [(k, v)], w, leftwards=True, interpret=interpret)
    return forward(plan, r, k, v, w, u, R, interpret=interpret)[0]


def _bi_wkv6_forward(plan: Plan, interpret, *inputs):
    return _bi_wkv6(plan, interpret, *inputs), inputs


def _bi_wkv6_backward(plan: Plan, interpret, inputs, g):
    r, k, v, w, u = inputs
    S = dR = None
    if plan.spans > 1:
        pairs = [(k, v), (r, g)]
        S, dR = entering_states(plan, pairs, w, leftwards=False, interpret=interpret)
    d = backward(plan, r, k, v, w, u, g, S, dR, None, interpret=interpret)
    return d["dr"], d["dk"], d["dv"], d["dw"], jnp.sum(d["du"], axis=0).astype(u.dtype)


_bi_wkv6.defvjp(_bi_wkv6_forward, _bi_wkv6_backward)


# --- causal ---------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _wkv6(plan: Plan, interpret, r, k, v, w, u, initial):
    return forward(plan, r, k, v, w, u, initial, interpret=interpret)


def _wkv6_forward(plan: Plan, interpret, *inputs):
    return _wkv6(plan, interpret, *inputs), inputs


def _wkv6_backward(plan: Plan, interpret, inputs, gradients):
    r, k, v, w, u, initial = inputs
    g, dfinal = gradients
    S = initial[:, None]  # [B, P, 128, 128] -> [B, spans, P, 128, 128]
    if plan.spans > 1:
        (S,) = entering_states(plan, [(k, v)], w, initial, leftwards=False, interpret=interpret)
    d = backward(plan, r, k, v, w, u, g, S, None, dfinal, interpret=interpret)
    du = jnp.sum(d["du"], axis=0).astype(u.dtype)
    return d["dr"], d["dk"], d["dv"], d["dw"], du, d["dinitial"]


_wkv6.defvjp(_wkv6_forward, _wkv6_backward)
