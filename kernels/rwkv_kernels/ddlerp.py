"""RWKV-6's data-dependent interpolation of a token and its neighbour, where a kernel serves.

A token is used in several ways, and chooses for each of them how much of its neighbour to look at:
x + xx (maa_a + z_a up_a), with xx the neighbour less the token, and z up a product of low rank.

Where no kernel serves (`unservable`) the formula is XLA's to compile: there is no other
implementation here.
"""

from jaxtyping import Array, Float

from rwkv_kernels import ddlerp_gpu, ddlerp_tpu
from rwkv_kernels.platforms import device_kind, platform
from rwkv_kernels.switch import switched_off

_KERNELS = {"gpu": ddlerp_gpu, "tpu": ddlerp_tpu}


def ddlerp(
    x: Float[Array, "*B D"],
    xx: Float[Array, "*B D"],
    z: Float[Array, "*B AR"],
    maa: Float[Array, "A D"],
    up: Float[Array, "A R D"],
) -> tuple[Float[Array, "*B D"], ...]:
    """x + xx (maa_a + z_a up_a) for each use a; products of bfloat16, all else in float32.

    Args:
      x: tokens, bfloat16.
      xx: their neighbours less them, like x.
      z: what tokens choose by, R channels for each use, bfloat16.
      maa: what is added to each choice, whatever the token is; float32 in the kernels.
      up: from choices to channels; bfloat16 in the kernels.

    Returns:
      A arrays like x.

    Raises:
      ValueError: shapes that disagree, or that no kernel serves (see `unservable`).

    Source: RWKV-6 (arXiv 2404.05892), section 4, "ddlerp".
    """
    A, R, D = up.shape
    token = (*x.shape[:-1], D)
    shapes = {"x": (x, token), "xx": (xx, token), "z": (z, (*x.shape[:-1], A * R))}
    for name, (array, wanted) in (shapes | {"maa": (maa, (A, D))}).items():
        if array.shape != wanted:
            raise ValueError(
                f"ddlerp: {name} must be {wanted} to go with up {up.shape} and x's tokens "
                f"{x.shape[:-1]}, got {array.shape}."
            )
    if x.size < 1:
        raise ValueError(f"ddlerp: x must hold a token at least, got shape {x.shape}.")
    if not x.dtype == xx.dtype == z.dtype:
        raise ValueError(
            f"ddlerp: x, xx and z must be of one dtype, got {x.dtype}, {xx.dtype}, {z.dtype}."
        )
    reasons = unservable(x.shape, x.dtype, up.shape)
    if reasons:
        raise ValueError(
            f"ddlerp: no kernel serves x {x.shape}, up {up.shape}: {'; '.join(reasons)}."
        )
    return _KERNELS[platform()].ddlerp(x, xx, z, maa, up)


def unservable(shape: tuple[int, ...], dtype, up_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Every reason why no kernel serves tokens of a shape and dtype on the device that is compiled
    for; nothing if one does.
    """
    if platform() not in _KERNELS:
        return (f"it is a TPU's or a Hopper GPU's kernel, and this is {device_kind()!r}",)
    return switched_off() + _KERNELS[platform()].unservable(shape, dtype, up_shape, device_kind())
