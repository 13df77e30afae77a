"""The gradient of a token's interpolations as a TPU kernel: each array crosses memory once.

What is unusual: z's channels of one use are never cut out of their register of 128 lanes. The
matrix unit takes 128 of them anyway, so the rows of `up` that are a use's stand among zeros, and
uses that share a register of z read all of it.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float, Float32

from rwkv_kernels.tpu import token_blocks
from rwkv_kernels.tpu.lanes import LANES
from rwkv_kernels.tpu.token_blocks import dot


@dataclasses.dataclass(frozen=True)
class Uses:
    """How many uses there are, and the rank of each, which divides the 128 lanes of a register."""

    count: int
    rank: int

    def lanes(self, use: int) -> slice:
        """Of z: all of the register that a use's channels are in."""
        first = use * self.rank // LANES * LANES
        return slice(first, min(first + LANES, self.count * self.rank))

    def own(self, use: int) -> slice:
        """A use's channels among those of its register."""
        first = use * self.rank % LANES
        return slice(first, first + self.rank)

    def of_z(self, use: int) -> slice:
        """A use's channels of z."""
        return slice(use * self.rank, (use + 1) * self.rank)


def backward(
    uses: Uses,
    xx: BFloat16[Array, "P Q D"],
    z: BFloat16[Array, "P Q AR"],
    maa: Float32[Array, "A D"],
    up: Float[Array, "A R D"],
    gradients: Sequence[BFloat16[Array, "P Q D"]],
    *,
    interpret=False,
) -> list[Array]:
    """Gradients of x, xx, z, maa and up, from those of the results.

    Those of maa and up, which is [A R, D] here, are float32.
    """

    def kernel(xx, z, *refs):
        gradients, refs = refs[: uses.count], refs[uses.count :]
        maa, up, dx, dxx, dz, dmaa, dup = refs

        of_xx = xx[...].astype(jnp.float32)
        of_x = of_neighbour = jnp.zeros_like(of_xx)
        of_z: dict[int, Array] = {}
        for use, gradient in enumerate(gradients):
            g = gradient[...].astype(jnp.float32)
            of_x = of_x + g
            of_neighbour = of_neighbour + g * _share(uses, use, z, maa, up)
            of_share = g * of_xx
            dmaa[use : use + 1, :] += jnp.sum(of_share, axis=0, keepdims=True)
            of_share, lanes = of_share.astype(jnp.bfloat16), uses.lanes(use)
            width = lanes.stop - lanes.start
            # Rows of other uses are zeros, and so is what comes to their channels.
            found = dot(of_share, up[use, :width, :], ((1,), (1,)))
            of_z[lanes.start] = of_z.get(lanes.start, 0.0) + found
            found = dot(z[:, lanes], of_share, ((0,), (0,)))  # of all uses' channels
            dup[uses.of_z(use), :] += found[uses.own(use), :]
        dx[...], dxx[...] = of_x.astype(dx.dtype), of_neighbour.astype(dxx.dtype)
        for first, found in of_z.items():
            dz[:, first : first + found.shape[1]] = found.astype(dz.dtype)

    of_maa = jax.ShapeDtypeStruct(maa.shape, jnp.float32)
    of_up = jax.ShapeDtypeStruct((uses.count * uses.rank, up.shape[-1]), jnp.float32)
    return token_blocks.call(
        kernel, (xx, z, *gradients), (maa, _among_zeros(uses, up)), (xx, xx, z), (of_maa, of_up),
        flops=3 * 2 * up.size, name="ddlerp_backward", interpret=interpret,
    )  # fmt: skip


def _share(uses: Uses, use: int, z, maa, up) -> Float32[Array, "rows D"]:
    """maa_a + z_a up_a."""
    lanes = uses.lanes(use)
    product = dot(z[:, lanes], up[use, : lanes.stop - lanes.start, :], ((1,), (0,)))
    return maa[use : use + 1, :] + product


def _among_zeros(uses: Uses, up: Float[Array, "A R D"]) -> BFloat16[Array, "A 128 D"]:
    """A use's rows where its channels of z are in their register."""
    rows = []
    for use in range(uses.count):
        own = uses.own(use)
        rows.append(jnp.pad(up[use], ((own.start, LANES - own.stop), (0, 0))))
    return jnp.stack(rows).astype(jnp.bfloat16)
