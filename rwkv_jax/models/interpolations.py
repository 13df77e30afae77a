"""What a token's uses see of it and of its neighbour: RWKV-6's data-dependent interpolation."""

from jaxtyping import Array, Float

from rwkv_jax.models.layers import linear
from rwkv_jax.wkv import ddlerp_kernel


def interpolations(
    x: Float[Array, "B T D"],
    xx: Float[Array, "B T D"],
    z: Float[Array, "B T AR"],
    maa: Float[Array, "A D"],
    up: Float[Array, "A R D"],
) -> tuple[Float[Array, "B T D"], ...]:
    """x + xx (maa_a + z_a up_a) for each use a; xx is the neighbour less the token.

    By a kernel where one serves (`rwkv_kernels.ddlerp`), which rounds only what it gives.

    Source: RWKV-6 (arXiv 2404.05892), section 4, "ddlerp".
    """
    kernel = ddlerp_kernel(x.shape, x.dtype, up.shape)
    if kernel is not None:
        return kernel(x, xx, z, maa, up)
    A, R, _ = up.shape
    maa = maa.astype(x.dtype)
    # One at a time: stacked, their gradient would be a reduction over five arrays in memory.
    return tuple(x + xx * (maa[a] + linear(z[..., a * R : (a + 1) * R], up[a])) for a in range(A))
