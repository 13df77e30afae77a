"""The one door to `rwkv_kernels`: what a block may take as its WKV, and for what surrounds it.

A WKV here maps (r, k, v, w [B, T, H, N], u [H, N]) to y [B, T, H, N]; `w` is the decay logit.
Under a mesh (`jax.set_mesh`) each device runs it on its own part of the batch and its own heads:
neither depends on another, and the loops inside a WKV are nothing that XLA could split by itself.
"""

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Literal

import jax
from jaxtyping import Array, Float

import rwkv_kernels
from rwkv_jax.mesh import (
    BATCH_AXES,
    TENSOR_AXIS,
    axis_sizes,
    batch_parts,
    free_axes,
    is_whole,
    split_over,
)
from rwkv_kernels import ddlerp, decay_logits, head_norm, platform, without_kernels, wkv6

__all__ = [
    "Kernels",
    "Wkv",
    "bi_wkv6",
    "causal_wkv6",
    "ddlerp_kernel",
    "decay_kernel",
    "head_norm_kernel",
    "platform",
    "using",
    "wkv6",
]

logger = logging.getLogger(__name__)

Kernels = Literal["auto", "none"]

Wkv = Callable[
    [
        Float[Array, "B T H N"],
        Float[Array, "B T H N"],
        Float[Array, "B T H N"],
        Float[Array, "B T H N"],
        Float[Array, "H N"],
    ],
    Float[Array, "B T H N"],
]


def using(kernels: Kernels) -> contextlib.AbstractContextManager[None]:
    """Inside, models that are traced take kernels where these serve ("auto"), or none of them."""
    return without_kernels() if kernels == "none" else contextlib.nullcontext()


def _on_each_device(wkv: Wkv) -> Wkv:
    """`wkv` on every device's part of the batch and heads, where a mesh is set; else as it is."""
    sizes = axis_sizes()
    if is_whole():
        return wkv
    tokens = split_over(BATCH_AXES, None, TENSOR_AXIS)  # [B, T, D]: whole heads lie together

    def of_flat(r, k, v, w, u):
        B, T, D = r.shape
        r, k, v, w = (x.reshape(B, T, *u.shape) for x in (r, k, v, w))  # [B, T, D] -> [B, T, H, N]
        y = wkv(r, k, v, w, u)
        return y.reshape(B, T, D)

    def sharded(r, k, v, w, u):
        # Flat across the border of `shard_map`: a view by head would be laid out in memory there.
        B, T, H, N = r.shape
        if H % sizes[TENSOR_AXIS]:
            raise ValueError(
                f"{H} heads do not divide over mesh.tensor = {sizes[TENSOR_AXIS]}: choose a mesh"
                " whose tensor axis divides the heads of every tower"
            )
        flat = jax.shard_map(
            of_flat,
            in_specs=(tokens, tokens, tokens, tokens, split_over(TENSOR_AXIS)),
            out_specs=tokens,
            axis_names=free_axes(),
            check_vma=False,  # the kernels know nothing of meshes, so their carries name no axes
        )
        r, k, v, w = (x.reshape(B, T, H * N) for x in (r, k, v, w))  # [B, T, H, N] -> [B, T, D]
        y = flat(r, k, v, w, u)
        return y.reshape(B, T, H, N)

    return sharded


def bi_wkv6(
    r: Float[Array, "B T H N"],
    k: Float[Array, "B T H N"],
    v: Float[Array, "B T H N"],
    w: Float[Array, "B T H N"],
    u: Float[Array, "H N"],
) -> Float[Array, "B T H N"]:
    """The bidirectional WKV of the two encoders."""
    return _on_each_device(rwkv_kernels.bi_wkv6)(r, k, v, w, u)


def causal_wkv6(
    r: Float[Array, "B T H N"],
    k: Float[Array, "B T H N"],
    v: Float[Array, "B T H N"],
    w: Float[Array, "B T H N"],
    u: Float[Array, "H N"],
) -> Float[Array, "B T H N"]:
    """The causal WKV from a zero state, without the final state: a language model in training."""
    return _on_each_device(lambda *inputs: wkv6(*inputs)[0])(r, k, v, w, u)


def ddlerp_kernel(
    shape: tuple[int, ...], dtype, up_shape: tuple[int, ...]
) -> Callable[..., tuple[Array, ...]] | None:
    """`rwkv_kernels.ddlerp.ddlerp` on every device's part of the batch and channels, for tokens
    [B, T, D] of that shape and dtype; None where no kernel serves.
    """
    part, (A, R, _) = _part_of_device(shape), up_shape
    if part is None or _passed_over("ddlerp", ddlerp.unservable(part, dtype, (A, R, part[-1]))):
        return None
    if is_whole():
        return ddlerp.ddlerp
    tokens = split_over(BATCH_AXES, None, TENSOR_AXIS)
    z = split_over(BATCH_AXES)
    weights = split_over(None, TENSOR_AXIS), split_over(None, None, TENSOR_AXIS)
    return jax.shard_map(
        ddlerp.ddlerp,
        in_specs=(tokens, tokens, z, *weights),
        out_specs=tokens,
        axis_names=free_axes(),
        check_vma=False,  # the kernels know nothing of meshes
    )


def decay_kernel(
    shape: tuple[int, ...], dtype, up_shape: tuple[int, ...]
) -> Callable[[Array, Array, Array], Array] | None:
    """`rwkv_kernels.decay_logits.decay_logits` of z [B, T, R] of that shape and dtype, on every
    device's part of the batch and channels; None where no kernel serves.
    """
    R, D = up_shape
    part = _part_of_device((*shape[:2], D))
    if part is None:
        return None
    reasons = decay_logits.unservable((*part[:2], R), dtype, (R, part[-1]))
    if _passed_over("decay_logits", reasons):
        return None
    if is_whole():
        return decay_logits.decay_logits
    return jax.shard_map(
        decay_logits.decay_logits,
        in_specs=(
            split_over(BATCH_AXES),
            split_over(None, TENSOR_AXIS),
            split_over(TENSOR_AXIS),
        ),
        out_specs=split_over(BATCH_AXES, None, TENSOR_AXIS),
        axis_names=free_axes(),
        check_vma=False,  # the kernels know nothing of meshes
    )


def head_norm_kernel(
    shape: tuple[int, ...], dtype, heads: int, eps: float
) -> Callable[[Array, Array, Array, Array], Array] | None:
    """`rwkv_kernels.head_norm.gated_head_norm` of tokens [B, T, D] of that shape and dtype, a gate,
    a scale and a bias, on every device's part of the batch and heads; None where no kernel serves.
    """
    part, parts = _part_of_device(shape), axis_sizes()[TENSOR_AXIS]
    if part is None or heads % parts:
        return None
    reasons = head_norm.unservable(part, dtype, heads // parts)
    if _passed_over("gated_head_norm", reasons):
        return None

    def norm(x, gate, scale, bias):
        return head_norm.gated_head_norm(x, gate, scale, bias, heads // parts, eps)

    if is_whole():
        return norm
    tokens, weights = split_over(BATCH_AXES, None, TENSOR_AXIS), split_over(TENSOR_AXIS)
    return jax.shard_map(
        norm,
        in_specs=(tokens, tokens, weights, weights),
        out_specs=tokens,
        axis_names=free_axes(),
        check_vma=False,  # the kernels know nothing of meshes
    )


def _passed_over(kernel: str, reasons: tuple[str, ...]) -> bool:
    """Whether there is a reason; on an accelerator it is logged."""
    if reasons and platform() != "cpu":
        _say_once(f"{kernel} on {platform()} is XLA's, no kernel ({'; '.join(reasons)})")
    return bool(reasons)


@functools.cache
def _say_once(message: str) -> None:
    """Once a process and reason; no warning, since XLA is hardly slower."""
    logger.info(message)


def _part_of_device(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """What a device has of tokens [B, T, D]; None if they do not divide."""
    (B, T, D), samples, channels = shape, batch_parts(), axis_sizes()[TENSOR_AXIS]
    return None if B % samples or D % channels else (B // samples, T, D // channels)
