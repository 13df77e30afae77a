"""The WKV as fused Pallas kernels for Hopper GPUs: the dyadic form in products of a warpgroup.

What is unusual: [B, T, H, N] is only a view. Kernels see [B, T, H * N], which is what a model's
projections make and take. Products of decays are exponentials of sums of log decays, and the sums
are products too, with masks of zeros and ones: rows of a tile lie in different threads, and the
tensor cores have time to spare. Nothing but the inputs is saved for the gradient.

Tiles of 64 tokens are worked on side by side, a warpgroup each. The tiles of a short sequence share
a block and read each other's shared memory: up to four of them forward, two backward. What more of
them say to one another flows through states at their borders, for which the sequence is gone over
once before (`gpu/sweep.py`), as it is for a causal WKV, whose state comes in and goes out.

A tile whose decays are gentle, as most are, needs no levels: it is asked while the kernel runs.

The way through `gpu/`: plan (how a call is cut) -> sweep, forward, backward (the kernels) -> call
(how tokens come and go) -> gentle, sixteens, tile, gradients (tokens among themselves, what comes
back from others) -> masks, beside (who meets whom) -> choose, warp, warpgroup (what all is written
in).

Operands of products are bfloat16, sums float32. Float32 tokens take kernels of their own
(`gpu/float32/`), in which an operand is two words of bfloat16 (`gpu/words.py`). docs/kernels.md has
what was measured, and on what.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rwkv_kernels.gpu.backward import backward
from rwkv_kernels.gpu.float32.backward import backward as backward_float32
from rwkv_kernels.gpu.float32.forward import forward as forward_float32
from rwkv_kernels.gpu.forward import forward
from rwkv_kernels.gpu.plan import Plan
from rwkv_kernels.gpu.sweep import Sum, states
from rwkv_kernels.gpu.tiling import Tiling
from rwkv_kernels.gpu.tuned import best
from rwkv_kernels.platforms import device_kind

_WORDS = {jnp.dtype("bfloat16"): 1, jnp.dtype("float32"): 2}

# Names of GPUs of compute capability 9.0, whose instructions the kernels are made of.
_HOPPER = re.compile(r"\b(G?H200|G?H100|H800|H20)\b")


def bi_wkv6(
    r: Float[Array, "B T H N"],
    k: Float[Array, "B T H N"],
    v: Float[Array, "B T H N"],
    w: Float[Array, "B T H N"],
    u: Float[Array, "H N"],
    *,
    tiling: Tiling | None = None,
    interpret=None,
) -> Float[Array, "B T H N"]:
    """Both directions; see `api.bi_wkv6`. `interpret`: the Mosaic GPU interpreter's parameters."""
    inputs = _as_kernels_see(r, k, v, w, u)
    plan = _plan(r.shape, inputs[0].dtype, causal=False, tiling=tiling)
    y = _bi_wkv6(plan, interpret, *inputs)
    return y.reshape(r.shape).astype(v.dtype)  # [B, T, H * N] -> [B, T, H, N]


def wkv6(
    r: Float[Array, "B T H N"],
    k: Float[Array, "B T H N"],
    v: Float[Array, "B T H N"],
    w: Float[Array, "B T H N"],
    u: Float[Array, "H N"],
    initial_state: Float[Array, "B H N N"] | None,
    *,
    tiling: Tiling | None = None,
    interpret=None,
) -> tuple[Float[Array, "B T H N"], Float[Array, "B H N N"]]:
    """Causal; see `api.wkv6`. `interpret`: the Mosaic GPU interpreter's parameters."""
    B, _, H, N = r.shape
    if initial_state is None:
        initial_state = jnp.zeros((B, H, N, N), jnp.float32)
    initial = jnp.swapaxes(initial_state, -1, -2)  # key x value -> value x key
    inputs = _as_kernels_see(r, k, v, w, u)
    plan = _plan(r.shape, inputs[0].dtype, causal=True, tiling=tiling)
    y, final = _wkv6(plan, interpret, *inputs, initial)
    y = y.reshape(r.shape).astype(v.dtype)  # [B, T, H * N] -> [B, T, H, N]
    return y, jnp.swapaxes(final, -1, -2)


def is_hopper(device_kind: str) -> bool:
    """Whether a GPU of that name has the instructions that the kernels are made of."""
    return _HOPPER.search(device_kind) is not None


def unservable(
    shape: tuple[int, int, int, int], dtype, device_kind: str, *, causal: bool
) -> tuple[str, ...]:
    """Every reason why the kernels cannot serve a call on a GPU; nothing if they can."""
    reasons: tuple[str, ...] = ()
    if not is_hopper(device_kind):
        reasons += (f"it is a Hopper GPU's kernel, and this is {device_kind!r}",)
    if dtype not in _WORDS:
        of = f"it takes {' or '.join(map(str, _WORDS))}, and r, k, v together are {dtype}"
        return (*reasons, of)
    return reasons + _plan(shape, dtype, causal=causal).unservable()


def words_of(dtype) -> int:
    """Of sixteen bits, in which products see numbers of a dtype that the kernels take."""
    return _WORDS[jnp.dtype(dtype)]


def _plan(shape: tuple[int, ...], dtype, *, causal: bool, tiling: Tiling | None = None) -> Plan:
    _, T, _, N = shape
    tiling = tiling or best(device_kind(), shape, str(dtype))
    plan = Plan(T, N, causal, tiling, words_of(dtype))
    if tiling.sweep_stages > 1 and plan.unservable():  # one stage takes less shared memory
        plan = dataclasses.replace(plan, tiling=dataclasses.replace(tiling, sweep_stages=1))
    return plan


def _as_kernels_see(r, k, v, w, u) -> tuple[Array, ...]:
    (B, T, H, N), dtype = r.shape, jnp.result_type(r, k, v)
    r, k, v, w = (x.reshape(B, T, H * N) for x in (r, k, v, w))  # [B, T, H, N] -> [B, T, H * N]
    r, k, v = (x.astype(dtype) for x in (r, k, v))
    return r, k, v, w.astype(jnp.float32), u.astype(jnp.float32)


def _forward(plan: Plan, r, k, v, w, u, states, interpret) -> Array:
    if plan.words == 2:
        return forward_float32(plan, r, k, v, w, u, states, interpret=interpret)
    return forward(plan, r, k, v, w, u, states and states[0], interpret=interpret)


def _backward(plan: Plan, r, k, v, w, u, g, said, asked, interpret) -> dict[str, Array]:
    if plan.words == 2:
        return backward_float32(plan, r, k, v, w, u, g, said, asked, interpret=interpret)
    said, asked = said and said[0], asked and asked[0]
    return backward(plan, r, k, v, w, u, g, said, asked, interpret=interpret)


# --- both directions ------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _bi_wkv6(plan: Plan, interpret, r, k, v, w, u):
    both = None
    if plan.reads_states("forward"):
        (both,) = states(plan, w, [Sum(v, k, (False, True))], interpret=interpret)
    return _forward(plan, r, k, v, w, u, both and both.borders, interpret)


def _bi_wkv6_forward(plan: Plan, interpret, *inputs):
    return _bi_wkv6(plan, interpret, *inputs), inputs


def _bi_wkv6_backward(plan: Plan, interpret, inputs, g):
    r, k, v, w, u = inputs
    said = asked = None
    if plan.reads_states("backward"):
        sums = Sum(v, k, (False, True)), Sum(g, r, (True, False))
        said, asked = (x.borders for x in states(plan, w, sums, interpret=interpret))
    d = _backward(plan, r, k, v, w, u, g, said, asked, interpret)
    return d["dr"], d["dk"], d["dv"], d["dw"], _of_bonus(d["du"], u)


_bi_wkv6.defvjp(_bi_wkv6_forward, _bi_wkv6_backward)


# --- causal ---------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _wkv6(plan: Plan, interpret, r, k, v, w, u, initial):
    (said,) = states(plan, w, [Sum(v, k, (False,), initial)], interpret=interpret)
    return _forward(plan, r, k, v, w, u, said.borders, interpret), said.ends[0]


def _wkv6_forward(plan: Plan, interpret, *inputs):
    return _wkv6(plan, interpret, *inputs), inputs


def _wkv6_backward(plan: Plan, interpret, inputs, gradients):
    r, k, v, w, u, initial = inputs
    g, dfinal = gradients
    sums = Sum(v, k, (False,), initial), Sum(g, r, (True,), dfinal)
    said, asked = states(plan, w, sums, interpret=interpret)
    d = _backward(plan, r, k, v, w, u, g, said.borders, asked.borders, interpret)
    return d["dr"], d["dk"], d["dv"], d["dw"], _of_bonus(d["du"], u), asked.ends[0]


_wkv6.defvjp(_wkv6_forward, _wkv6_backward)


def _of_bonus(by_tile: Float[Array, "B tiles C"], u: Float[Array, "H N"]) -> Float[Array, "H N"]:
    return jnp.sum(by_tile, axis=(0, 1)).reshape(u.shape)  # [H * N] -> [H, N]
