"""The two public functions, the table of implementations, and what is checked before any compiles.

Unlike the WKV of the RWKV papers' CUDA kernels, nothing here is compiled for one length or one head
size. Any T >= 1, any N that is a multiple of 4; no 1/sqrt(N) scale.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from rwkv_kernels import associative_scan, chunked, pallas_gpu, pallas_tpu, reference
from rwkv_kernels.platforms import device_kind, platform, unsplit, varying
from rwkv_kernels.switch import switched_off

logger = logging.getLogger(__name__)

_DTYPES = tuple(map(jnp.dtype, ("bfloat16", "float16", "float32", "float64")))
_FLOAT32 = jnp.dtype("float32")


@dataclasses.dataclass(frozen=True)
class Call:
    """What an implementation may look at to say whether it can serve a call: shapes, no values."""

    function: str  # "bi_wkv6" or "wkv6"
    platform: str  # "cpu", "gpu" or "tpu"
    shape: tuple[int, int, int, int]  # B, T, H, N
    dtype: jnp.dtype  # of r, k and v together
    device_kind: str = ""  # such as "NVIDIA H200"
    wide: jnp.dtype = _FLOAT32  # of states and sums; float64 if any input is


def _runs_everywhere(call: Call) -> tuple[str, ...]:
    del call
    return ()


def _why_not_pallas_tpu(call: Call) -> tuple[str, ...]:
    if call.platform != "tpu":
        return ("it is a TPU's kernel",)
    reasons = switched_off()
    if call.wide == jnp.float64:
        reasons += ("a TPU computes in float32 at most, and an input is float64",)
    causal = call.function == "wkv6"
    return reasons + pallas_tpu.unservable(call.shape, call.dtype, call.device_kind, causal=causal)


def _why_not_pallas_gpu(call: Call) -> tuple[str, ...]:
    if call.platform != "gpu":
        return ("it is a Hopper GPU's kernel",)
    reasons = switched_off()
    if call.wide == jnp.float64:
        reasons += ("it computes in float32 at most, and an input is float64",)
    causal = call.function == "wkv6"
    return reasons + pallas_gpu.unservable(call.shape, call.dtype, call.device_kind, causal=causal)


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One row of the table: both functions, and every reason why they cannot serve a call.

    The functions take checked arguments in the order of `reference.py`, without defaults.
    """

    bi_wkv6: Callable[..., Array]
    wkv6: Callable[..., tuple[Array, Array]]
    why_not: Callable[[Call], tuple[str, ...]] = _runs_everywhere


# In order of preference: `implementation=None` takes the first row that can serve the call.
IMPLEMENTATIONS: dict[str, Implementation] = {
    "pallas_tpu": Implementation(pallas_tpu.bi_wkv6, pallas_tpu.wkv6, _why_not_pallas_tpu),
    "pallas_gpu": Implementation(pallas_gpu.bi_wkv6, pallas_gpu.wkv6, _why_not_pallas_gpu),
    "chunked": Implementation(chunked.bi_wkv6, chunked.wkv6),
    "reference": Implementation(reference.bi_wkv6, reference.wkv6),
    "associative_scan": Implementation(associative_scan.bi_wkv6, associative_scan.wkv6),
}


def bi_wkv6(
    r: Float[Array, "B T H N"],
    k: Float[Array, "B T H N"],
    v: Float[Array, "B T H N"],
    w: Float[Array, "B T H N"],
    u: Float[Array, "H N"],
    *,
    implementation: str | None = None,
) -> Float[Array, "B T H N"]:
    """The bidirectional WKV: every token sees every other, decayed by the tokens between.

    y_t = sum_{j<t} (r_t . prod_{i=j+1..t-1} d_i . k_j) v_j + (r_t . u . k_t) v_t
        + sum_{j>t} (r_t . prod_{i=t+1..j-1} d_i . k_j) v_j,    d_i = exp(-exp(w_i)).

    Args:
      r: receptance [B, T, H, N], float32, bfloat16, float16 or float64.
      k: key, like r.
      v: value, like r.
      w: decay logit, [B, T, H, N], float32 whatever the others are (bfloat16 is taken, and loses
        decays near 1). Any value: a decay of 0 or 1 neither overflows nor loses gradients, but
        that a GPU's kernels in bfloat16 lose w's own below -19 (decays within 6e-9 of 1):
        see docs/kernels.md.
      u: bonus of the present token [H, N].
      implementation: a name from `IMPLEMENTATIONS`; None takes the first that can serve the call.

    Returns:
      y [B, T, H, N] in v's dtype. State and sums are float32 (float64 for float64 inputs).

    Raises:
      ValueError: shapes or dtypes that disagree, an unknown implementation, or a named one that
        cannot serve the call (with the reasons); a call inside `jax.shard_map`, unless with
        check_vma=False.

    Source: RWKV-CLIP (arXiv 2406.06973), section 3; RWKV-6 (arXiv 2404.05892), equation 19.
    """
    call = _check("bi_wkv6", r, k, v, w, u)
    return _choose(call, implementation).bi_wkv6(r, k, v, w, u)


def wkv6(
    r: Float[Array, "B T H N"],
    k: Float[Array, "B T H N"],
    v: Float[Array, "B T H N"],
    w: Float[Array, "B T H N"],
    u: Float[Array, "H N"],
    *,
    initial_state: Float[Array, "B H N N"] | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T H N"], Float[Array, "B H N N"]]:
    """The causal WKV of RWKV-6, with its state handed in and out.

    y_t = r_t (S_t + diag(u) k_t v_t^T),  S_{t+1} = diag(d_t) S_t + k_t v_t^T,
    d_t = exp(-exp(w_t)).

    Args:
      r, k, v, w, u, implementation: as in `bi_wkv6`.
      initial_state: S_0, float32 [B, H, N, N], key x value; None is zeros.

    Returns:
      y [B, T, H, N] in v's dtype, and the final state S_T, float32 [B, H, N, N]: handed to the next
      call as `initial_state`, it continues the sequence. Both carry gradients.

    Raises:
      ValueError: as `bi_wkv6`, and for a state of another shape or dtype.

    Source: RWKV-6 (arXiv 2404.05892), equations 18-19.
    """
    call = _check("wkv6", r, k, v, w, u)
    _check_state(initial_state, call)
    return _choose(call, implementation).wkv6(r, k, v, w, u, initial_state)


def _check(function: str, r, k, v, w, u) -> Call:
    arrays = {"r": r, "k": k, "v": v, "w": w, "u": u}
    for name, x in arrays.items():
        if not hasattr(x, "shape") or x.dtype not in _DTYPES:
            kind = getattr(x, "dtype", type(x).__name__)
            raise ValueError(
                f"{function}: {name} must be a floating-point array, got {kind}: cast it to one of "
                f"{', '.join(map(str, _DTYPES))}."
            )
        if axes := varying(x):
            raise ValueError(
                f"{function}: {name} varies over the mesh's {sorted(axes)}, which kernels and "
                "loops do not know of: call it inside jax.shard_map(..., check_vma=False)."
            )
    if r.ndim != 4:
        raise ValueError(f"{function}: r must be [B, T, H, N], got shape {r.shape}.")
    for name in ("k", "v", "w"):
        if arrays[name].shape != r.shape:
            raise ValueError(
                f"{function}: {name} must have r's shape [B, T, H, N] = {r.shape}, "
                f"got {arrays[name].shape}."
            )
    B, T, H, N = r.shape
    if u.shape != (H, N):
        raise ValueError(
            f"{function}: u must be [H, N] = {(H, N)} to go with r {r.shape}, got {u.shape}."
        )
    if T < 1 or B < 1 or H < 1:
        raise ValueError(
            f"{function}: got shape {r.shape} as [B, T, H, N]. Any T >= 1 is accepted, and B >= 1, "
            "H >= 1; there is no WKV of nothing."
        )
    if N < 4 or N % 4:
        raise ValueError(
            f"{function}: the head size N must be a positive multiple of 4, got N = {N} "
            f"in r {r.shape}."
        )
    return Call(
        function, platform(), r.shape, jnp.result_type(r, k, v), device_kind(), _wide(r, k, v, w, u)
    )


def _wide(*arrays: Array) -> jnp.dtype:
    """What states and sums are in. Numpy's float64 is none to JAX, if it has no 64 bits."""
    widest = any(jnp.result_type(x) == jnp.float64 for x in arrays)
    return jnp.dtype("float64") if widest else _FLOAT32


def _check_state(initial_state, call: Call) -> None:
    if initial_state is None:
        return
    B, _, H, N = call.shape
    expected = (B, H, N, N)
    dtype = call.wide
    if getattr(initial_state, "shape", None) != expected or initial_state.dtype != dtype:
        got = (
            f"{initial_state.dtype} {initial_state.shape}"
            if hasattr(initial_state, "shape")
            else type(initial_state).__name__
        )
        raise ValueError(
            f"wkv6: initial_state must be {dtype} [B, H, N, N] = {expected} to go with "
            f"r {call.shape}, k, v, w and u, got {got}."
        )


def servable(call: Call) -> list[str]:
    """Names of the implementations that can serve a call, in order of preference."""
    return [name for name, row in IMPLEMENTATIONS.items() if not row.why_not(call)]


def _choose(call: Call, name: str | None) -> Implementation:
    if name is not None:
        if name not in IMPLEMENTATIONS:
            raise ValueError(
                f"{call.function}: unknown implementation {name!r}; known: "
                f"{', '.join(IMPLEMENTATIONS)}."
            )
        reasons = IMPLEMENTATIONS[name].why_not(call)
        if reasons:
            raise ValueError(
                f"{call.function}: implementation {name!r} cannot serve {call.shape} "
                f"{call.dtype} on {call.platform}: {'; '.join(reasons)}."
            )
        return IMPLEMENTATIONS[name]
    passed_over: list[str] = []
    for candidate, implementation in IMPLEMENTATIONS.items():
        reasons = implementation.why_not(call)
        if not reasons:
            _log_choice(call, candidate, passed_over)
            return implementation
        passed_over.append(f"not {candidate}: {', '.join(reasons)}")
    raise ValueError(
        f"{call.function}: nothing can serve {call.shape} {call.dtype} on {call.platform}: "
        f"{'; '.join(passed_over)}."
    )


def _log_choice(call: Call, chosen: str, passed_over: list[str]) -> None:
    because = f" ({'; '.join(passed_over)})" if passed_over else ""
    logger.info(
        "%s %s %s on %s: %s%s",
        call.function, call.shape, call.dtype, call.platform, chosen, because,
    )  # fmt: skip
    if call.platform != "cpu" and not chosen.startswith("pallas"):
        _warn_once(f"{call.function} on {call.platform} takes {chosen}, no kernel{because}")
    axes = unsplit() if chosen.startswith("pallas") else ()
    if axes:
        _warn_once(
            f"{call.function} on {call.platform} is a kernel, which XLA does not split over the"
            f" mesh's {list(axes)}: a GPU's devices all do all of its work, and TPUs refuse. Call"
            " it inside jax.shard_map(..., check_vma=False)"
        )


@functools.cache
def _warn_once(message: str) -> None:
    """Once a process and reason: a model traces its WKV many times."""
    logger.warning(message)
