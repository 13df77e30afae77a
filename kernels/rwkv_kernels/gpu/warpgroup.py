"""What a kernel's arithmetic is written in: tiles in registers and products by a warpgroup.

With `warp.py` the one point where versions of Pallas' Mosaic GPU differ, and where the interpreter,
which has no register layouts and no products of registers, is given the same arithmetic in plain
JAX.

Products multiply bfloat16, or float16 where logarithms of decays are summed, and sum in float32.

Mosaic's own barriers around every read and write of shared memory are off (`call.kernel_call`). A
thread reads again what it wrote, without waiting; for what products and the copy engine read it
waits in `Warpgroup.store`, and for what is overwritten in `Warpgroup.wait_for_readers`.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith
from jaxlib.mlir.dialects import llvm
from jaxtyping import Array, BFloat16, Float, Int

from rwkv_kernels.gpu.plan import TILE, Plan, parts

_WHOLE = ()  # an index: JAX 0.10 wants one, 0.11 lets it be left out
BFLOAT16, FLOAT16 = jnp.bfloat16, jnp.float16


def halves(columns: int) -> tuple[tuple[int, int], ...]:
    """Columns in two parts, first and number, in sixteens; in one if there are no more."""
    sixteens = columns // 16
    half = 16 * (sixteens - sixteens // 2)
    return tuple(part for part in ((0, half), (half, columns - half)) if part[1])


@dataclasses.dataclass(frozen=True)
class Operand:
    """A tile in shared memory that products read, or some of its rows or columns.

    Attributes:
      ref: [rows, columns], swizzled.
      transposed: whether products take it with rows and columns changed.
    """

    ref: Any
    transposed: bool = False

    @property
    def T(self) -> "Operand":  # noqa: N802, as arrays have it
        return Operand(self.ref, not self.transposed)

    def columns(self, first: int, count: int) -> "Operand":
        return Operand(self.ref.at[:, pl.ds(first, count)])


Lhs = Float[Array, "64 k"] | Operand


@dataclasses.dataclass(frozen=True)
class Warpgroup:
    """128 threads that hold tiles of 64 rows in registers.

    Attributes:
      plan: the static shape.
      width: how many of a head's channels it takes.
      warpgroups: how many a block has, each with shared memory of its own.
      interpret: None on a GPU, else the interpreter's parameters.
    """

    plan: Plan
    width: int
    warpgroups: int = 1
    interpret: Any = None

    def load(self, ref) -> Float[Array, "64 n"]:
        """A tile from memory into registers, as float32."""
        return self.float32(self.load_raw(ref))

    def float32(self, x: Float[Array, "64 n"]) -> Float[Array, "64 n"]:
        """A tile's numbers. Of a pair of bfloat16 one is shifted and one masked: the compiler would
        take three steps.
        """
        if self.interpret is not None or x.dtype != BFLOAT16:
            return x.astype(jnp.float32)
        layout: Any = plgpu.Layout.WGMMA

        @plgpu.inline_mgpu(
            arg_types=(layout,), return_type=plgpu.ShapeDtypeStruct(x.shape, jnp.float32, layout)
        )
        def halves(_, x):
            i32, f32 = ir.IntegerType.get_signless(32), ir.F32Type.get()
            result = np.empty_like(x.registers)
            for at, register in np.ndenumerate(x.registers):
                bits = llvm.bitcast(i32, register)
                of_two = llvm.mlir_undef(ir.VectorType.get((2,), f32))
                both = arith.shli(bits, mgpu.c(16, i32)), arith.andi(bits, mgpu.c(0xFFFF0000, i32))
                for i, half in enumerate(both):
                    of_two = llvm.insertelement(of_two, llvm.bitcast(f32, half), mgpu.c(i, i32))
                result[at] = of_two
            return mgpu.FragmentedArray(_registers=result, _layout=x.layout, _is_signed=None)

        return halves(x)

    def load_raw(self, ref) -> Float[Array, "64 n"]:
        """A tile from memory into registers, in the dtype it has."""
        if self.interpret is not None:
            return ref[...]
        return plgpu.load(ref, _WHOLE, layout=plgpu.Layout.WGMMA, optimized=False)

    def load_row(self, ref) -> Float[Array, "64 n"]:
        """A row [n] from main memory, the same in all 64 rows; float32."""
        shape = (TILE, ref.shape[0])
        if self.interpret is not None:
            return lax.broadcast_in_dim(ref[...], shape, (1,)).astype(jnp.float32)
        layout = plgpu.Layout.WGMMA.reduce(0)
        x = plgpu.load(ref, _WHOLE, layout=layout, optimized=False)
        return lax.broadcast_in_dim(x, shape, (1,)).astype(jnp.float32)

    def zeros(self, columns: int) -> Float[Array, "64 columns"]:
        """A tile to begin a sum with."""
        return self.constant(0, columns, jnp.float32)

    def constant(self, number: float, columns: int, dtype) -> Float[Array, "64 columns"]:
        """A tile of one number; a plain constant has another layout than what it meets."""
        tile = jnp.full((TILE, columns), number, dtype)
        return tile if self.interpret is not None else plgpu.layout_cast(tile, plgpu.Layout.WGMMA)

    def zero_by_row(self) -> Float[Array, "64"]:
        """To begin a sum of each row with."""
        zeros = jnp.zeros(TILE, jnp.float32)
        if self.interpret is not None:
            return zeros
        return plgpu.layout_cast(zeros, plgpu.Layout.WGMMA.reduce(1))

    def index(self, columns: int, axis: int) -> Int[Array, "64 columns"]:
        """Which row (axis 0) or column each element of a tile is in."""
        shape = (TILE, columns)
        if self.interpret is not None:
            return lax.broadcasted_iota(jnp.int32, shape, axis)
        return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA)

    def count(self, axis: int, size: int = TILE) -> Int[Array, "size"]:
        """0, 1, ..., to be spread over a tile with `spread` along the same axis."""
        if self.interpret is not None:
            return lax.iota(jnp.int32, size)
        layout = plgpu.Layout.WGMMA.reduce(1 - axis)
        return plgpu.broadcasted_iota(jnp.int32, (size,), 0, layout=layout)

    def spread(
        self, x: Float[Array, "64"], axis: int, columns: int = TILE
    ) -> Float[Array, "64 columns"]:
        """A number for each row (axis 0) or column in all of that row or column."""
        return lax.broadcast_in_dim(x, (TILE, columns), (axis,))

    def sum_of_columns(self, x: Float[Array, "64 n"]) -> Float[Array, "64"]:
        """The sum of each row: two numbers a thread."""
        return jnp.sum(x, axis=1)

    def split(self, x: Float[Array, "64 n"]) -> tuple[BFloat16[Array, "64 n"], ...]:
        """x in two parts of bfloat16, high and low: 15 bits."""
        # Cut off, not rounded: a number at a time is rounded slowly, and here it is wanted again.
        bits = lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFF0000)
        high = lax.bitcast_convert_type(bits, jnp.float32)
        return high.astype(BFLOAT16), (x - high).astype(BFLOAT16)

    def wait_for_readers(self) -> None:
        """Waits until all threads are here: none reads any more what is overwritten next."""
        if self.interpret is None:
            plgpu.inline_mgpu()(lambda _: mgpu.warpgroup_barrier())()

    def store(self, *pairs: tuple[Operand, Float[Array, "rows columns"]]) -> None:
        """Rounds tiles, writes them where products read them, and waits until all are there.

        That no thread still reads what was there is the caller's to see to.
        """
        for operand, x in pairs:
            self.write(operand, x)
        plgpu.commit_smem()

    def write(self, operand: Operand, x: Float[Array, "rows columns"]) -> None:
        """Rounds a tile and writes it, for the same threads to read it again. Waits for nobody."""
        x = x.astype(operand.ref.dtype)
        if self.interpret is not None:
            operand.ref[...] = x
            return
        # `ref[...] = x` would read what was there before, and the compiler does not see that
        # nobody looks at it.
        swizzle = self.swizzle
        types = (plgpu.RefType(self._transforms), plgpu.Layout.WGMMA)

        @plgpu.inline_mgpu(arg_types=types)
        def write(_, memory, tile):
            tile.store_tiled(memory, swizzle=swizzle)

        write(operand.ref, x)

    def product(self, lhs: Lhs, *rhs: Operand) -> Float[Array, "64 n"]:
        """lhs @ rhs, of float32 sums; lhs in registers or in shared memory, rhs [k, n].

        Several right operands are parts of one: their products are added up.
        """
        (total,) = self.products((lhs, *rhs))
        return total

    def products(self, *pairs: tuple[Lhs, *tuple[Operand, ...]]) -> list[Float[Array, "64 n"]]:
        """Several at once, waited for together."""
        return self.sums_of_products(*([(lhs, x) for x in rhs] for lhs, *rhs in pairs))

    def sums_of_products(self, *sums: Sequence[tuple[Lhs, Operand]]) -> list[Float[Array, "64 n"]]:
        """Several sums of several products, all waited for together."""
        operands = [[(self._turned(x), self._turned(y)) for x, y in pairs] for pairs in sums]
        if self.interpret is not None:
            dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
            return [functools.reduce(jnp.add, (dot(*pair) for pair in of)) for of in operands]

        def accumulate(*totals):
            for total, pairs in zip(totals, operands, strict=True):
                for pair in pairs:
                    plgpu.wgmma(total, *pair)
            return [total[...] for total in totals]

        shapes = [(pairs[0][0].shape[0], pairs[0][1].shape[1]) for pairs in operands]
        return pl.run_scoped(accumulate, *(plgpu.ACC(shape, jnp.float32) for shape in shapes))

    def add_product(
        self, total: Float[Array, "64 n"], lhs: Lhs, *rhs: Operand
    ) -> Float[Array, "64 n"]:
        """total + lhs @ rhs, in the registers that the total is in; else as `product`."""
        (total,) = self.add_products([total], [(lhs, x) for x in rhs])
        return total

    def add_products(
        self, totals: Sequence[Float[Array, "64 n"]], *sums: Sequence[tuple[Lhs, Operand]]
    ) -> list[Float[Array, "64 n"]]:
        """Each total with a sum of products, in its own registers; waited for together."""
        if self.interpret is not None:
            return list(map(jnp.add, totals, self.sums_of_products(*sums)))
        operands = [[(self._turned(x), self._turned(y)) for x, y in pairs] for pairs in sums]

        def accumulate(totals):
            for total, pairs in zip(totals, operands, strict=True):
                for pair in pairs:
                    plgpu.wgmma(total, *pair)

        return pl.run_state(accumulate)([plgpu.ACC.init(total) for total in totals])

    def _turned(self, x: Lhs) -> Array:
        """An operand as it is multiplied."""
        if not isinstance(x, Operand):
            return x
        memory = x.ref if self.interpret is None else x.ref[...]
        return memory.T if x.transposed else memory

    @property
    def swizzle(self) -> int:
        """Bytes: the widest permutation that divides every row, so that no bank is read twice."""
        return max(math.gcd(128, *(2 * count for _, count in self.halves)), 32)

    @property
    def halves(self) -> tuple[tuple[int, int], ...]:
        """Channels in two parts, first and number, in sixteens: one after the other they take half
        of the registers.
        """
        return halves(self.width)

    @property
    def thirds(self) -> tuple[tuple[int, int], ...]:
        """As `halves`, 32 channels each, or as many as cannot be cut in shared memory."""
        count = max(32, self.swizzle // 2)
        firsts = range(0, self.width, count)
        return tuple((first, min(count, self.width - first)) for first in firsts)

    @property
    def _transforms(self) -> tuple:
        return (
            plgpu.TilingTransform((8, self.swizzle // 2)),
            plgpu.SwizzleTransform(self.swizzle),
        )

    def operand(
        self, columns: int, *, several: tuple[int, ...] = (), rows: int = TILE, dtype=BFLOAT16
    ) -> Any:
        """Shared memory for an operand [rows, columns] of each warpgroup, swizzled; for several."""
        shape = (self.warpgroups, *several, rows, columns)
        return plgpu.SMEM(shape, dtype, transforms=self._transforms)

    def numbers(self, count: int) -> Any:
        """Shared memory for a float32 of each channel or token, of each warpgroup."""
        return plgpu.SMEM((self.warpgroups, count), jnp.float32)

    def tokens(self, columns: int, dtype, *, stages: int | None = None) -> tuple[Any, ...]:
        """Shared memory for tiles of tokens as they come from main memory (`tokens.py`), of each
        warpgroup, or of each stage of the only one.

        Not swizzled: a tile that main memory's rows end in is filled up with zeros only so.
        """
        count = self.warpgroups if stages is None else stages
        of_one = parts(columns, jnp.dtype(dtype).itemsize)
        return tuple(plgpu.SMEM((count, TILE, part), dtype) for part in of_one)

    def in_turn(self, *groups: Sequence[Any]) -> Any:
        """Shared memory for groups that are never in use at the same time: the room of the largest.

        Of all the block's warpgroups at once: between two groups they wait for each other
        (`Block.wait_for_all`). The interpreter, which has room enough, gives each its own.
        """
        return groups if self.interpret is not None else plgpu.RefUnion(*groups)
