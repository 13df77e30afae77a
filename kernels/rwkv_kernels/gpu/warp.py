"""What a warp does with the sixteen tokens it holds: products of registers, without shared memory.

A tile's rows lie in four warps' registers, sixteen each. What sixteen tokens say to one another
never leaves them: no barrier, and a quarter of a warpgroup's product, which is 64 rows by 64. The
result is [64, 16]: a token's row has a column for each of its sixteen.

The interpreter is given the same arithmetic in plain JAX, as in `warpgroup.py`.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir import ir
from jaxlib.mlir.dialects import llvm
from jaxtyping import Array, BFloat16, Float

from rwkv_kernels.gpu.plan import TILE
from rwkv_kernels.gpu.warpgroup import Warpgroup

SIXTEEN = 16
LEVELS = SIXTEEN.bit_length() - 1  # 1, 2, 4 and 8 tokens to the midpoint: all within sixteen


def meet(
    wg: Warpgroup,
    x: Float[Array, "64 n"],
    y: Float[Array, "64 n"],
    sums: Float[Array, "64 16"] | None = None,
) -> Float[Array, "64 16"]:
    """x_t . y_s for each s of t's sixteen, in float32; added to `sums`."""
    n = x.shape[1]
    if wg.interpret is not None:
        return _played("wtn,wsn->wts", x, y, sums)

    given = (x, y) if sums is None else (x, y, sums)

    @inline(len(given), SIXTEEN, jnp.float32)
    def multiply(_, x, y, sums=None):
        # [16 channels, their half, tokens' half] -> [16 channels, tokens' half, their half]
        return _product(x, y.registers.reshape(n // 16, 2, 2).swapaxes(1, 2), SIXTEEN, sums)

    return multiply(*given)


def columns(wg: Warpgroup, x: Float[Array, "64 n"], first: int, count: int) -> Array:
    """x[:, first : first + count]."""
    if wg.interpret is not None:
        return x[:, first : first + count]

    @inline(1, count, x.dtype)
    def cut(_, x):
        return x[:, first : first + count]

    return cut(x)


def mix(
    wg: Warpgroup,
    d: Float[Array, "64 16"],
    y_turned: Float[Array, "64 n"],
    sums: Float[Array, "64 n"] | None = None,
) -> Float[Array, "64 n"]:
    """The sum of d_ts y_s over t's sixteen, in float32, added to `sums`; y as `turned` gives it."""
    n = y_turned.shape[1]
    if wg.interpret is not None:
        return _played("wts,wsn->wtn", d, turned(wg, y_turned), sums)

    given = (d, y_turned) if sums is None else (d, y_turned, sums)

    @inline(len(given), n, jnp.float32)
    def multiply(_, d, y, sums=None):
        return _product(d, y.registers, n, sums)

    return multiply(*given)


def joined(wg: Warpgroup, parts: Sequence[Float[Array, "64 n"]]) -> Array:
    """Columns side by side again, as `columns` has cut them."""
    if wg.interpret is not None:
        return jnp.concatenate(parts, axis=1)
    n = sum(x.shape[1] for x in parts)

    @inline(len(parts), n, parts[0].dtype)
    def join(_, *parts):
        registers = [x.registers.reshape(-1, 2) for x in parts]  # each 8 columns, tokens' half
        shape = mgpu.WGMMA_LAYOUT.registers_shape((TILE, n))
        return of_registers(np.concatenate(registers).reshape(shape), mgpu.WGMMA_LAYOUT)

    return join(*parts)


def turned(wg: Warpgroup, y: Float[Array, "64 n"]) -> Float[Array, "64 n"]:
    """Each 8 x 8 block of a tile of 16-bit numbers with rows and columns changed."""
    n = y.shape[1]
    if wg.interpret is not None:
        blocks = y.reshape(TILE // 8, 8, n // 8, 8).swapaxes(1, 3)  # [64, n] -> [8, 8, n / 8, 8]
        return blocks.reshape(TILE, n)  # [8, 8, n / 8, 8] -> [64, n]

    @inline(1, n, y.dtype)
    def turn(_, y):
        return of_registers(np.vectorize(_turn, otypes=[object])(y.registers), y.layout)

    return turn(y)


def transposed(wg: Warpgroup, d: BFloat16[Array, "64 16"]) -> BFloat16[Array, "64 16"]:
    """d_st in the place of d_ts."""
    if wg.interpret is not None:
        d = d.reshape(-1, SIXTEEN, SIXTEEN).swapaxes(1, 2)  # [64, 16] -> [4, 16, 16]
        return d.reshape(TILE, SIXTEEN)  # [4, 16, 16] -> [64, 16]

    @inline(1, SIXTEEN, d.dtype)
    def transpose(_, d):
        blocks = np.vectorize(_turn, otypes=[object])(d.registers.reshape(2, 2))
        return of_registers(blocks.T.reshape(d.registers.shape), d.layout)

    return transpose(d)


def first_row(wg: Warpgroup, x: Float[Array, "64 n"]) -> Float[Array, "n"]:
    """Any row of a tile whose rows are all the same."""
    if wg.interpret is not None:
        return x[0]
    n = x.shape[1]
    layout: Any = plgpu.Layout.WGMMA
    result = plgpu.ShapeDtypeStruct((n,), x.dtype, layout.reduce(0))

    @plgpu.inline_mgpu(arg_types=(layout,), return_type=result)
    def take(_, x):
        rows = layout.reduce(0).to_mgpu()
        registers = x.registers.reshape(n // 8, 2)[:, 0]  # each 8 columns, of a token
        return of_registers(registers.reshape(rows.registers_shape((n,))), rows)

    return take(x)


def _played(formula: str, x: Array, y: Array, sums: Array | None) -> Array:
    """Each warp's product, as the interpreter is given it."""
    x, y = (z.reshape(-1, SIXTEEN, z.shape[1]) for z in (x, y))  # [64, n] -> [4, 16, n]
    product = jnp.einsum(formula, x, y, preferred_element_type=jnp.float32)
    product = product.reshape(TILE, -1)  # [4, 16, n] -> [64, n]
    return product if sums is None else sums + product


def inline(arguments: int, columns: int, dtype):
    """Arrays in registers in, an array in registers [64, columns] out."""
    layout: Any = plgpu.Layout.WGMMA
    result = plgpu.ShapeDtypeStruct((TILE, columns), dtype, layout)
    return plgpu.inline_mgpu(arg_types=(layout,) * arguments, return_type=result)


def _product(x, registers: np.ndarray, columns: int, sums=None):
    """x [64, k] times what each warp has of a right operand [k, columns], as its own.

    registers: [k / 16, columns / 8, 2]. Mosaic takes a right operand to be the same in all warps;
    nothing in the instruction asks for that.
    """
    layouts = mgpu.MMALayouts(x.mlir_dtype)
    k = x.shape[1]
    lhs, rhs = (
        of_registers(r.reshape(layout.registers_shape(shape)), layout)
        for r, layout, shape in (
            (x.registers, layouts.lhs, (TILE, k)),
            (registers, layouts.rhs, (k, columns)),
        )
    )
    if sums is None:
        zero = mgpu.c(0.0, ir.F32Type.get())
        sums = mgpu.FragmentedArray.splat(zero, (TILE, columns), layouts.acc)
    product = mgpu.mma(of_registers(sums.registers, layouts.acc), lhs, rhs)
    return of_registers(product.registers, mgpu.WGMMA_LAYOUT)


def of_registers(registers: np.ndarray, layout):
    return mgpu.FragmentedArray(_registers=registers, _layout=layout, _is_signed=None)


def _turn(register):
    """An 8 x 8 block that a warp holds, two numbers a thread."""
    i32 = ir.IntegerType.get_signless(32)
    bits = llvm.bitcast(i32, register)
    assembly = "movmatrix.sync.aligned.m8n8.trans.b16 $0, $1;"
    turned: Any = llvm.inline_asm(i32, [bits], assembly, "=r,r")
    return llvm.bitcast(register.type, turned)
