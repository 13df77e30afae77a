"""`ddlerp` for a TPU: forward it is XLA's to compile, backward there is a kernel (`tpu/ddlerp.py`).

XLA makes each interpolation inside the product that takes it, which no kernel could. Of their
gradients it makes sums and products that read each array three or four times.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float

from rwkv_kernels.tpu import token_blocks
from rwkv_kernels.tpu.ddlerp import Uses, backward
from rwkv_kernels.tpu.lanes import LANES
from rwkv_kernels.tpu.plan import LEAST_LIMIT, too_old, vmem_of
from rwkv_kernels.tpu.token_blocks import as_they_lie

# Channels of all uses. Weights and their gradient are in fast memory whole: five uses of 11,520 did
# not fit, nor twelve of 1,024 where there are 16 MiB in all (v4).
_MOST_CHANNELS, _MOST_OF_SMALL = 5 * 8192, 5 * 2048


def ddlerp(
    x: BFloat16[Array, "B T D"],
    xx: BFloat16[Array, "B T D"],
    z: BFloat16[Array, "B T AR"],
    maa: Float[Array, "A D"],
    up: Float[Array, "A R D"],
    *,
    interpret=False,
) -> tuple[BFloat16[Array, "B T D"], ...]:
    """See `ddlerp.ddlerp`. `interpret`: the TPU interpreter's parameters."""
    return _ddlerp(interpret, x, xx, z, maa, up)


def unservable(
    shape: tuple[int, ...], dtype, up_shape: tuple[int, ...], device_kind: str
) -> tuple[str, ...]:
    """Every reason why these kernels cannot serve a call on a TPU; nothing if they can."""
    A, R, D = up_shape
    reasons = too_old(device_kind)
    if dtype != jnp.bfloat16:
        reasons += (f"it computes in bfloat16, and x, xx and z together are {dtype}",)
    most = _MOST_CHANNELS if vmem_of(device_kind) > LEAST_LIMIT else _MOST_OF_SMALL
    if D % LANES or most < A * D or not A * R or LANES % R:
        reasons += (
            f"D = {D} and {A} uses of rank {R}, but it takes multiples of {LANES}, {most} of all "
            f"uses together, and ranks that divide {LANES}",
        )
    return reasons + token_blocks.unservable(shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ddlerp(interpret, x, xx, z, maa, up):
    A, R, _ = up.shape
    maa, up = maa.astype(x.dtype), up.astype(x.dtype)
    # One at a time: stacked, they would be laid out in memory.
    return tuple(x + xx * (maa[a] + z[..., a * R : (a + 1) * R] @ up[a]) for a in range(A))


def _forward(interpret, x, xx, z, maa, up):
    return _ddlerp(interpret, x, xx, z, maa, up), (xx, z, maa, up)


def _backward(interpret, kept, gradients):
    xx, z, maa, up = kept
    A, R, _ = up.shape
    xx_, z_, *gradients = as_they_lie(xx, z, *gradients, like=xx.shape)
    *of_tokens, of_maa, of_up = backward(
        Uses(A, R), xx_, z_, maa.astype(jnp.float32), up, gradients, interpret=interpret
    )
    of_up = of_up.reshape(up.shape)  # [A R, D] -> [A, R, D]
    of_weights = of_maa.astype(maa.dtype), of_up.astype(up.dtype)
    return *as_they_lie(*of_tokens, like=xx.shape), *of_weights


_ddlerp.defvjp(_forward, _backward)
