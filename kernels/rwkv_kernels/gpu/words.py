"""Float32 numbers as products see them: two words of sixteen bits each.

A tensor core multiplies numbers of 16 bits. x is high + low, the first what x is rounded to and the
second what that leaves out, rounded too: in bfloat16 17 bits together, in float16 22. A product of
two such numbers is three products; low times low would be less than what is left out anyway.

Numbers that come as bfloat16 are one word, and all here does then what it would without.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from rwkv_kernels.gpu.warpgroup import Lhs, Operand, Warpgroup

Words = Sequence[Operand]  # of a tile in shared memory, high first; one or two


def operands(refs: Sequence) -> tuple[Operand, ...]:
    """Words in shared memory, as products read them."""
    return tuple(map(Operand, refs))


def turned(x: Words) -> tuple[Operand, ...]:
    """As products take them with rows and columns changed."""
    return tuple(y.T for y in x)


def columns(x: Words, first: int, count: int) -> tuple[Operand, ...]:
    """Some of the columns."""
    return tuple(y.columns(first, count) for y in x)


def split(wg: Warpgroup, x: Float[Array, "64 n"], dtype) -> tuple[Array, Array]:
    """high and low of a tile in registers, float32.

    Rounded, where `Warpgroup.split` cuts off: a bit more, for more instructions.
    """
    high = x.astype(dtype)
    return high, (x - wg.float32(high)).astype(dtype)


def of(wg: Warpgroup, x: Float[Array, "64 n"], count: int, dtype) -> tuple[Array, ...]:
    """A tile in registers in so many words."""
    return (x.astype(dtype),) if count == 1 else split(wg, x.astype(jnp.float32), dtype)


def write(wg: Warpgroup, to: Words, x: Float[Array, "rows columns"]) -> None:
    """Writes a tile where products read it, in as many words as there are. Waits for nobody."""
    for operand, word in zip(to, of(wg, x, len(to), to[0].ref.dtype), strict=True):
        wg.write(operand, word)


def load(wg: Warpgroup, x: Words) -> Float[Array, "64 n"]:
    """A tile again in registers, as float32."""
    high, *low = (wg.load(y.ref) for y in x)
    return sum(low, high)


def pairs(x: Sequence[Lhs], y: Words) -> list[tuple[Lhs, Operand]]:
    """Whose products' sum is x y. A mask is one word."""
    most = max(len(x), len(y))
    return [(a, b) for i, a in enumerate(x) for j, b in enumerate(y) if i + j < most]
