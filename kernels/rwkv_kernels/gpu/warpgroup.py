"""What a kernel's arithmetic is written in: tiles in registers and products by a warpgroup.

The one point where versions of Pallas' Mosaic GPU differ, and where the interpreter, which has no
register layouts and no products of registers, is given the same arithmetic in plain JAX.

Products multiply bfloat16. What has to be multiplied with more than its 8 bits is held in two
parts, high and low, whose sum has 16; other operands are one part. A 0/1 mask loses nothing.
"""

import dataclasses
import functools
import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from rwkv_kernels.gpu.plan import TILE, Plan

_WHOLE = ()  # an index: JAX 0.10 wants one, 0.11 lets it be left out
BFLOAT16 = jnp.bfloat16

Parts = tuple[Array, ...]  # an operand in registers


def rounded(x: Float[Array, "64 n"]) -> Parts:
    """x in bfloat16."""
    return (x.astype(BFLOAT16),)


def split(x: Float[Array, "64 n"]) -> Parts:
    """x in two parts of bfloat16, high and low."""
    high = x.astype(BFLOAT16)
    return high, (x - high.astype(jnp.float32)).astype(BFLOAT16)


@dataclasses.dataclass(frozen=True)
class Operand:
    """A tile in shared memory that products read, in one bfloat16 part or two.

    Attributes:
      parts: references [rows, columns], all alike.
      transposed: whether products take it with rows and columns changed.
    """

    parts: tuple[Any, ...]
    transposed: bool = False

    @property
    def T(self) -> "Operand":  # noqa: N802, as arrays have it
        return Operand(self.parts, not self.transposed)

    def rows(self, first: int, count: int) -> "Operand":
        return Operand(tuple(part.at[pl.ds(first, count)] for part in self.parts))

    def columns(self, first: int, count: int) -> "Operand":
        return Operand(tuple(part.at[:, pl.ds(first, count)] for part in self.parts))

    def store(self, x: Float[Array, "rows columns"] | Parts) -> Parts:
        """Rounds a tile, if it is not yet, and gives it as registers hold it."""
        if not isinstance(x, tuple):
            x = rounded(x) if len(self.parts) == 1 else split(x)
        for part, value in zip(self.parts, x, strict=True):
            part[...] = value
        plgpu.commit_smem()
        return x


@dataclasses.dataclass(frozen=True)
class Warpgroup:
    """128 threads that hold tiles of 64 rows in registers.

    Attributes:
      plan: the static shape.
      widths: how many of a head's channels each of a block's warpgroups takes.
      interpret: None on a GPU, else the interpreter's parameters.
      numbers: 0 to 63 in main memory, from which positions are read, or None.
    """

    plan: Plan
    widths: tuple[int, ...]
    interpret: Any = None
    numbers: Any = None

    def reading(self, numbers) -> "Warpgroup":
        """The same, with positions read from memory wherever they are used.

        Else the compiler works them out once, and holds them in 40 registers through all that
        follows, for which it spills others.
        """
        return dataclasses.replace(self, numbers=numbers)

    def load(self, ref) -> Float[Array, "64 n"]:
        """A tile from memory into registers, as float32."""
        return self._load(ref).astype(jnp.float32)

    def load_raw(self, operand: Operand) -> Array:
        """An operand of one part from shared memory into registers, as it lies there."""
        (part,) = operand.parts
        return self._load(part)

    def _load(self, ref) -> Array:
        if self.interpret is not None:
            return ref[...]
        return plgpu.load(ref, _WHOLE, layout=plgpu.Layout.WGMMA, optimized=False)

    def load_sum(self, operand: Operand) -> Float[Array, "64 n"]:
        """All parts of an operand."""
        return functools.reduce(jnp.add, (self.load(part) for part in operand.parts))

    def load_row(self, ref) -> Float[Array, "64 n"]:
        """A row [n] from main memory, the same in all 64 rows; float32."""
        return self._load_along(ref, axis=1).astype(jnp.float32)

    def _load_along(self, ref, *, axis: int) -> Array:
        """A vector [n] from main memory along an axis of a tile, the same along the other."""
        shape = (TILE, ref.shape[0])
        if self.interpret is not None:
            return lax.broadcast_in_dim(ref[...], shape, (axis,))
        layout = plgpu.Layout.WGMMA.reduce(1 - axis)
        x = plgpu.load(ref, _WHOLE, layout=layout, optimized=False)
        return lax.broadcast_in_dim(x, shape, (axis,))

    def zeros(self, columns: int) -> Float[Array, "64 columns"]:
        """A tile to begin a sum with; a plain constant has another layout than what is added."""
        zeros = jnp.zeros((TILE, columns), jnp.float32)
        if self.interpret is not None:
            return zeros
        return plgpu.layout_cast(zeros, plgpu.Layout.WGMMA)

    def position(self) -> tuple[Array, Array]:
        """Row and column of each score, int32 [64, 64]."""
        if self.numbers is None:
            return self.index(TILE, 0), self.index(TILE, 1)
        return self._load_along(self.numbers, axis=0), self._load_along(self.numbers, axis=1)

    def index(self, columns: int, axis: int) -> Array:
        """Which row (axis 0) or column each element of a tile is in, int32 [64, columns]."""
        shape = (TILE, columns)
        if self.interpret is not None:
            return lax.broadcasted_iota(jnp.int32, shape, axis)
        return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA)

    def product(self, lhs: Parts | Operand, rhs: Operand) -> Float[Array, "64 n"]:
        """lhs @ rhs, of float32 sums.

        lhs: registers [64, k], or shared memory [64, k]; rhs: shared memory [k, n].
        """
        pairs = [
            (a, b) for a in (lhs.parts if isinstance(lhs, Operand) else lhs) for b in rhs.parts
        ]
        turn_lhs = isinstance(lhs, Operand) and lhs.transposed
        if self.interpret is not None:
            products = [
                jnp.dot(
                    _turned(a[...], turn_lhs),
                    _turned(b[...], rhs.transposed),
                    preferred_element_type=jnp.float32,
                )
                for a, b in pairs
            ]
            return functools.reduce(jnp.add, products)

        pairs = [(_turned(a, turn_lhs), _turned(b, rhs.transposed)) for a, b in pairs]

        def accumulate(total):
            for a, b in pairs:
                plgpu.wgmma(total, a, b)
            return total[...]

        shape = (pairs[0][0].shape[0], pairs[0][1].shape[1])
        return pl.run_scoped(accumulate, plgpu.ACC(shape, jnp.float32))

    def operand(self, columns: int, *, rows: int = TILE, parts: int = 1) -> list:
        """Shared memory for the parts of an operand: bfloat16 [rows, columns], swizzled."""
        return [self._swizzled((rows, columns)) for _ in range(parts)]

    def _swizzled(self, shape: tuple[int, ...]):
        # The widest permutation of bytes that divides every row: products read no bank twice.
        swizzle = max(math.gcd(128, *(2 * width for width in self.widths)), 32)
        transforms = (plgpu.TilingTransform((8, swizzle // 2)), plgpu.SwizzleTransform(swizzle))
        return plgpu.SMEM(shape, BFLOAT16, transforms=transforms)

    def tokens(self, columns: int, dtype) -> Any:
        """Shared memory for a tile of tokens as it comes from main memory: rows in turn.

        Not swizzled: a tile that main memory's rows end in is filled up with zeros only so.
        """
        return plgpu.SMEM((TILE, columns), dtype)


def _turned(x, turn: bool):
    return x.T if turn else x
