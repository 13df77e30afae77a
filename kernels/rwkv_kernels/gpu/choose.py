"""What a warpgroup's threads decide together while they run, and what is chosen by bits.

A compiler that sees through a branch works out what comes after it before, and has not the
registers to keep it. What threads have said is a number that it knows nothing of.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils as mgpu_utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith
from jaxlib.mlir.dialects import llvm, nvvm
from jaxtyping import Array, Float, Float16, Int

from rwkv_kernels.gpu.plan import TILE
from rwkv_kernels.gpu.warp import inline, of_registers
from rwkv_kernels.gpu.warpgroup import Warpgroup

# Whether all of a warpgroup's threads say so, who wait for each other: by Mosaic's own barrier.
_VOTE = (
    "{ .reg .pred p; setp.ne.b32 p, $1, 0; bar.red.and.pred p, $2, 128, p; selp.b32 $0, 1, 0, p; }"
)


def within(
    wg: Warpgroup, x: Float[Array, "64 n"], most: float, y: Float[Array, "64 n"], least: float,
    allowed: Int[Array, ""],
) -> Int[Array, ""]:  # fmt: skip
    """1 if no number of x is larger than `most`, nor one of y smaller than `least`, else 0: the
    same to all of a warpgroup's threads, who wait for each other.

    Of x only the first eight of each sixteen rows are looked at. allowed: 1, or 0 for 0 in any
    case.
    """
    if wg.interpret is not None:
        return (jnp.all(x <= most) & jnp.all(y >= least)).astype(jnp.int32) & allowed
    layout: Any = plgpu.Layout.WGMMA
    one: Any = plgpu.Layout.WG_SPLAT(())
    result = plgpu.ShapeDtypeStruct((), jnp.int32, one)

    @plgpu.inline_mgpu(arg_types=(layout, layout, one), return_type=result)
    def ask(_, x, y, allowed):
        x, y = ([z[:, i : i + 8] for i in range(0, z.shape[1], 8)] for z in (x, y))
        largest = functools.reduce(lambda x, y: x.max(y), x).registers.flat[:1]
        smallest = functools.reduce(lambda x, y: x.min(y), y).registers.flat
        i32, is_ = ir.IntegerType.get_signless(32), arith.CmpFPredicate
        said = []
        for compare, bound, registers in ((is_.OLE, most, largest), (is_.OGE, least, smallest)):
            for pair, i in itertools.product(registers, range(2)):
                number = llvm.extractelement(pair, mgpu.c(i, i32))
                said.append(arith.cmpf(compare, number, mgpu.c(bound, number.type)))
        by_thread = arith.extui(i32, functools.reduce(arith.andi, said))
        by_thread = arith.andi(by_thread, allowed.registers.item())
        barrier = arith.addi(mgpu.warpgroup_idx(sync=False), mgpu.c(1, i32))
        inputs = [by_thread, barrier]
        by_all: Any = llvm.inline_asm(i32, inputs, _VOTE, "=r,r,r", has_side_effects=True)
        # From one lane, that the compiler sees that all go the same way.
        every_lane, zero = mgpu.c(0xFFFFFFFF, i32), mgpu.c(0, i32)
        by_all = nvvm.shfl_sync(every_lane, by_all, zero, mgpu.c(31, i32), nvvm.ShflKind.idx)
        return mgpu.FragmentedArray.splat(by_all, (), is_signed=True)

    return ask(x, y, allowed)


def apart(said: Int[Array, ""], i: int, work: Callable[[], Any], *of_nothing: Array) -> Any:
    """work(), in a branch that is always taken, though no compiler sees it.

    said: 0 or 1, as `within` gives it; i: 0 or more, another number than that of the branch before,
    with which it would be merged; of_nothing: arrays as work gives them, from `anything`.
    """
    return lax.cond(said < 2 + i, work, lambda: of_nothing)


def anything(wg: Warpgroup, columns: int, dtype) -> Float[Array, "64 columns"]:
    """What stands where nothing will be read: no instruction makes it."""
    if wg.interpret is not None:
        return jnp.zeros((TILE, columns), dtype)

    @inline(0, columns, dtype)
    def undefined(_):
        pair = ir.VectorType.get((2,), mgpu_utils.dtype_to_ir_type(jnp.dtype(dtype)))
        result = np.empty(mgpu.WGMMA_LAYOUT.registers_shape((TILE, columns)), object)
        for at in np.ndindex(result.shape):
            result[at] = llvm.mlir_undef(pair)
        return of_registers(result, mgpu.WGMMA_LAYOUT)

    return undefined()


def where(
    wg: Warpgroup, bits: Float16[Array, "64 64"], x: Array, y: Array | None = None
) -> Float[Array, "64 64"]:
    """x where all bits are set (`masks.bits`), and y where none is, or 0: numbers of 16 bits, a
    pair at a time.

    What is not chosen may be infinite, or none.
    """
    if wg.interpret is not None:
        return jnp.where(bits != 0, x, jnp.zeros_like(x) if y is None else y)
    given = (bits, x) if y is None else (bits, x, y)

    @inline(len(given), TILE, x.dtype)
    def choose(_, bits, x, *y):
        i32 = ir.IntegerType.get_signless(32)
        result = np.empty_like(x.registers)
        for at, register in np.ndenumerate(x.registers):
            mask, chosen, *other = (llvm.bitcast(i32, z.registers[at]) for z in (bits, x, *y))
            if other:
                differ = arith.andi(arith.xori(chosen, other[0]), mask)
                number = arith.xori(other[0], differ)
            else:
                number = arith.andi(chosen, mask)
            result[at] = llvm.bitcast(register.type, number)
        return of_registers(result, x.layout)

    return choose(*given)
