"""[64, 64] of what each token has with its sixteen, and of what a warp's tokens have with others.

A warp's tokens are all earlier than another sixteen, or all later: of those a number is enough.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith
from jaxlib.mlir.dialects import llvm
from jaxtyping import Array, BFloat16, Float16

from rwkv_kernels.gpu import masks
from rwkv_kernels.gpu.plan import TILE
from rwkv_kernels.gpu.warp import LEVELS, SIXTEEN, of_registers
from rwkv_kernels.gpu.warpgroup import Warpgroup

# Gives what stands for another sixteen: other(type of a pair of numbers, whether that is earlier
# than the warp's, whether it is the one next to it, numbers that are known only then).
Other = Callable[..., Any]


def zeros(wg: Warpgroup, own: BFloat16[Array, "64 16"]) -> BFloat16[Array, "64 64"]:
    """With 0 for all others."""
    if wg.interpret is not None:
        return _played(wg, own, lambda *_: 0)
    return _beside(own, lambda type_, *_: mgpu.c(0.0, type_))


def halves(wg: Warpgroup, own: Float16[Array, "64 16"]) -> Float16[Array, "64 64"]:
    """With a half for all earlier ones, and minus a half for all later ones."""
    if wg.interpret is not None:
        return _played(wg, own, lambda earlier, _: jnp.where(earlier, 0.5, -0.5))

    def half(type_, earlier, _):
        return arith.select(earlier, mgpu.c(0.5, type_), mgpu.c(-0.5, type_))

    return _beside(own, half)


def bits(wg: Warpgroup, own: Float16[Array, "64 16"], *, earlier: bool) -> Float16[Array, "64 64"]:
    """`masks.bits`: all bits for all earlier ones, or all later ones, and none for the rest."""
    if wg.interpret is not None:
        return _played(wg, own, lambda is_earlier, _: jnp.where(is_earlier == earlier, -1, 0))

    def all_or_none(type_, is_earlier, _):
        i32 = ir.IntegerType.get_signless(32)
        numbers = [mgpu.c(-int(x == earlier), i32) for x in (True, False)]
        return llvm.bitcast(type_, arith.select(is_earlier, *numbers))

    return _beside(own, all_or_none)


def to_edge(
    wg: Warpgroup, own: Float16[Array, "64 16"], left: int | Array, *, transposed: bool = False,
    one: float = 1,
) -> Float16[Array, "64 64"]:  # fmt: skip
    """`masks.decays_to_edge` of all tokens, by meetings of each one's sixteen.

    one: what stands for 1. Given here, since the compiler would multiply all of a mask whose edge
    it does not know.
    """
    mask = masks.decays_to_edge(own, left, transposed=transposed)
    mask = mask * jnp.asarray(one, mask.dtype)
    # 1 if all later sixteens are marked, 0 if all earlier ones are.
    later = jnp.int32(left if transposed else 1 - left)
    if wg.interpret is not None:
        return _played(wg, mask, lambda earlier, _: one * jnp.where(earlier, 1 - later, later))

    def marked(type_, earlier, _, later):
        numbers = (mgpu.c(x, type_) for x in (float(one), 0.0))
        is_later = arith.cmpi(arith.CmpIPredicate.ne, later, mgpu.c(0, later.type))
        return arith.select(arith.xori(earlier, is_later), *numbers)

    return _beside(mask, marked, later)


def meetings(wg: Warpgroup, own: Float16[Array, "64 16"]) -> Float16[Array, "64 64"]:
    """With those of others (`masks.meetings`): of a warp's tokens all meet all of another sixteen
    at one level, that of 16 or of 32 tokens.
    """
    near, far = LEVELS + 1.0, LEVELS + 2.0
    if wg.interpret is not None:

        def played(earlier, is_near):
            level = jnp.where(is_near, near, far)
            return jnp.where(earlier, -level, level)

        return _played(wg, own, played)

    def level(type_, earlier, is_near):
        of = [arith.select(earlier, mgpu.c(-x, type_), mgpu.c(x, type_)) for x in (near, far)]
        return arith.select(is_near, *of)

    return _beside(own, level)


def _played(wg: Warpgroup, own: Array, other: Callable[[Array, Array], Any]) -> Array:
    """As the interpreter is given it."""
    row, column = (wg.index(TILE, axis) // SIXTEEN for axis in (0, 1))
    elsewhere = jnp.asarray(other(column < row, row ^ column == 1), own.dtype)
    return jnp.where(row == column, jnp.tile(own, (1, TILE // SIXTEEN)), elsewhere)


def _beside(own: Array, other: Other, *numbers: Array) -> Array:
    layout: Any = plgpu.Layout.WGMMA
    types = (layout, *(plgpu.Layout.WG_SPLAT(()) for _ in numbers))
    result = plgpu.ShapeDtypeStruct((TILE, TILE), own.dtype, layout)

    @plgpu.inline_mgpu(arg_types=types, return_type=result)
    def spread(_, own, *numbers):
        known = [x.registers.item() for x in numbers]
        i32, is_ = ir.IntegerType.get_signless(32), arith.CmpIPredicate
        warp = arith.remui(mgpu.warp_idx(sync=False), mgpu.c(TILE // SIXTEEN, i32))
        registers = own.registers.reshape(2, 2)  # [their half, tokens' half]
        result = np.empty((TILE // SIXTEEN, 2, 2), object)  # [sixteen, its half, tokens' half]
        for i, of_one in enumerate(result):
            sixteen = mgpu.c(i, i32)
            here = arith.cmpi(is_.eq, warp, sixteen)
            earlier = arith.cmpi(is_.ult, sixteen, warp)
            near = arith.cmpi(is_.eq, arith.xori(warp, sixteen), mgpu.c(1, i32))
            elsewhere = other(registers[0, 0].type, earlier, near, *known)
            for at, register in np.ndenumerate(registers):
                of_one[at] = arith.select(here, register, elsewhere)
        shape = mgpu.WGMMA_LAYOUT.registers_shape((TILE, TILE))
        return of_registers(result.reshape(shape), own.layout)

    return spread(own, *numbers)
