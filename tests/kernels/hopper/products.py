"""Products of a warp, wgmma: 16 of a warpgroup's 64 rows, of operands in shared memory.

Where an operand's numbers lie is what its descriptor says: PTX ISA, "Asynchronous warpgroup level
matrix instructions", shared memory matrix layouts. Written from there and not from what Mosaic
makes of it, so that the two agree or not.
"""

import functools

import numpy as np

from hopper.arithmetic import LANES

_SWIZZLES = {1: 128, 2: 64, 3: 32}


def swizzled(address: np.ndarray, swizzle: int) -> np.ndarray:
    """Where the permutation of a swizzle puts a byte: address bits are mixed into lower ones."""
    mask = {128: 0x70, 64: 0x30, 32: 0x10}.get(swizzle, 0)
    return address ^ ((address >> 3) & mask)


def addresses(descriptor: int, rows: int, transposed: bool) -> np.ndarray:
    """Of each number of an operand [rows, 16]; rows are a product's rows or columns.

    transposed: rows, not what is summed over, lie next to each other.
    """
    start, leading, stride = (((descriptor >> shift) & 0x3FFF) << 4 for shift in (0, 16, 32))
    swizzle = _SWIZZLES[descriptor >> 62]
    row, k = _indices(rows)
    if transposed:
        along = swizzle // 2
        at = row // along * leading + row % along * 2 + k % 8 * swizzle + k // 8 * stride
    else:
        at = row // 8 * stride + row % 8 * swizzle + 2 * k
    return swizzled(start + at, swizzle)


@functools.cache
def _indices(rows: int) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.indices((rows, 16)))


def of_registers(registers, dtype) -> np.ndarray:
    """The 16 rows of an operand [16, 16] that a warp holds, two numbers a register."""
    group, pair = np.divmod(np.arange(LANES), 4)
    tile = np.empty((16, 16), dtype)
    for i, register in enumerate(registers):
        numbers = register.view(dtype).reshape(LANES, 2)
        for j in range(2):
            tile[group + 8 * (i % 2), 2 * pair + 8 * (i // 2) + j] = numbers[:, j]
    return tile


def spread(product: np.ndarray) -> list[np.ndarray]:
    """A product [16, n] as a warp holds it: a register's number of each thread."""
    group, pair = np.divmod(np.arange(LANES), 4)
    return [
        product[group + 8 * down, 8 * tile + 2 * pair + j]
        for tile in range(product.shape[1] // 8)
        for down in range(2)
        for j in range(2)
    ]
