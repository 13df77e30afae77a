"""What a kernel's arithmetic is written in: tiles in registers and products by a warpgroup.

The one point where versions of Pallas' Mosaic GPU differ, and where the interpreter, which has no
register layouts and no products of registers, is given the same arithmetic in plain JAX.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from rwkv_kernels.gpu.plan import TILE, Plan

_WHOLE = ()  # an index: JAX 0.10 wants one, 0.11 lets it be left out
BFLOAT16 = jnp.bfloat16


@dataclasses.dataclass(frozen=True)
class Warpgroup:
    """128 threads that hold tiles of 64 rows in registers.

    Attributes:
      plan: the static shape.
      interpret: None on a GPU, else the interpreter's parameters.
    """

    plan: Plan
    interpret: Any = None

    def load(self, ref) -> Float[Array, "64 n"]:
        """A tile from shared memory into registers, as float32."""
        if self.interpret is not None:
            return ref[...].astype(jnp.float32)
        x = plgpu.load(ref, _WHOLE, layout=plgpu.Layout.WGMMA, optimized=False)
        return x.astype(jnp.float32)

    def load_row(self, ref) -> Float[Array, "64 n"]:
        """A row [n] from main memory, the same in all 64 rows; float32."""
        rows = (TILE, ref.shape[-1])
        if self.interpret is not None:
            return lax.broadcast_in_dim(ref[...].astype(jnp.float32), rows, (1,))
        layout = plgpu.Layout.WGMMA.reduce(0)
        x = plgpu.load(ref, _WHOLE, layout=layout, optimized=False).astype(jnp.float32)
        return lax.broadcast_in_dim(x, rows, (1,))

    def position(self) -> tuple[Array, Array]:
        """Row and column of each score, int32 [64, 64]."""
        return self._index(TILE, 0), self._index(TILE, 1)

    def rows(self) -> Array:
        """Which row each element of a tile is in, int32 [64, N]."""
        return self._index(self.plan.head_size, 0)

    def _index(self, columns: int, axis: int) -> Array:
        shape = (TILE, columns)
        if self.interpret is not None:
            return lax.broadcasted_iota(jnp.int32, shape, axis)
        return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA)

    def product(self, *pairs: tuple[Any, Any]) -> Float[Array, "m n"]:
        """The sum of lhs @ rhs over pairs, bfloat16 operands, float32 sums.

        lhs: registers [64, k], or shared memory [m, k]; rhs: shared memory [k, n].
        """
        if self.interpret is not None:
            products = [
                jnp.dot(_value(lhs), _value(rhs), preferred_element_type=jnp.float32)
                for lhs, rhs in pairs
            ]
            return functools.reduce(jnp.add, products)

        def accumulate(total):
            for lhs, rhs in pairs:
                plgpu.wgmma(total, _reference(lhs), _reference(rhs))
            return total[...]

        shape = (pairs[0][0].shape[0], pairs[0][1].shape[1])
        return pl.run_scoped(accumulate, plgpu.ACC(shape, jnp.float32))

    @property
    def operand(self):
        """Shared memory for a tile that products read: bfloat16 [64, N], swizzled."""
        return self._operand(TILE)

    @property
    def state(self):
        """Shared memory for a state that products read, value x key: bfloat16 [N, N], swizzled."""
        return self._operand(self.plan.head_size)

    def _operand(self, rows: int):
        swizzle = self.plan.swizzle
        transforms = (plgpu.TilingTransform((8, swizzle // 2)), plgpu.SwizzleTransform(swizzle))
        return plgpu.SMEM((rows, self.plan.head_size), BFLOAT16, transforms=transforms)

    def tokens(self, dtype):
        """Shared memory for a tile of tokens as it comes from main memory: [64, N], rows in turn.

        Not swizzled: a tile that main memory's rows end in is filled up with zeros only so.
        """
        return plgpu.SMEM((TILE, self.plan.head_size), dtype)


@dataclasses.dataclass(frozen=True)
class Transposed:
    """An operand [n, m] in shared memory, taken as [m, n]."""

    of: Any

    @property
    def shape(self) -> tuple[int, int]:
        return self.of.shape[::-1]


def _value(operand) -> Array:
    """An operand as the interpreter multiplies it."""
    if isinstance(operand, Transposed):
        return operand.of[...].T
    return operand if isinstance(operand, jax.Array) else operand[...]


def _reference(operand):
    """An operand as Mosaic multiplies it."""
    return operand.of.T if isinstance(operand, Transposed) else operand
