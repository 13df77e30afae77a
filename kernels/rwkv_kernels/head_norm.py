"""The norm of each head's channels, token by token, and its gate, where a kernel serves.

RWKV-6 norms what the WKV gives by head, and multiplies it with silu of a gate. Where no kernel
serves (`unservable`) the formula is XLA's to compile: there is no other implementation here.
"""

from jaxtyping import Array, BFloat16, Float

from rwkv_kernels import head_norm_gpu, head_norm_tpu
from rwkv_kernels.platforms import device_kind, platform
from rwkv_kernels.switch import switched_off

_KERNELS = {"gpu": head_norm_gpu, "tpu": head_norm_tpu}


def gated_head_norm(
    x: BFloat16[Array, "B T D"],
    gate: BFloat16[Array, "B T D"],
    scale: Float[Array, "D"],
    bias: Float[Array, "D"],
    heads: int,
    eps: float,
) -> BFloat16[Array, "B T D"]:
    """(z scale + bias) silu(gate), z of zero mean and unit variance over each head's channels.

    Args:
      x: tokens, bfloat16, heads side by side.
      gate: like x.
      scale, bias: of each channel.
      heads: H, which divides D.
      eps: added to the variance.

    Returns:
      y like x, computed in float32 but for the gate on a TPU. Its gradients have the dtypes of what
      they are of.

    Raises:
      ValueError: a gate, scale or bias of another shape; x, or its heads, that no kernel serves
        (see `unservable`).

    Source: group norm (arXiv 1803.08494) with a group a head, and its gate, as RWKV-6 (arXiv
    2404.05892) has them.
    """
    row = x.shape[-1:]
    for name, array, wanted in (
        ("gate", gate, x.shape),
        ("scale", scale, row),
        ("bias", bias, row),
    ):
        if array.shape != wanted:
            raise ValueError(
                f"gated_head_norm: {name} must be {wanted} to go with x {x.shape}, got "
                f"{array.shape}."
            )
    if gate.dtype != x.dtype:
        raise ValueError(f"gated_head_norm: gate must be {x.dtype} as x is, got {gate.dtype}.")
    reasons = unservable(x.shape, x.dtype, heads)
    if reasons:
        raise ValueError(f"gated_head_norm: no kernel serves x {x.shape}: {'; '.join(reasons)}.")
    return _KERNELS[platform()].gated_head_norm(x, gate, scale, bias, heads, eps)


def unservable(shape: tuple[int, ...], dtype, heads: int) -> tuple[str, ...]:
    """Every reason why no kernel serves tokens [B, T, D] and gates of a shape and dtype on the
    device that is compiled for; nothing if one does.
    """
    if platform() not in _KERNELS:
        return (f"it is a TPU's or a Hopper GPU's kernel, and this is {device_kind()!r}",)
    return switched_off() + _KERNELS[platform()].unservable(shape, dtype, heads, device_kind())
