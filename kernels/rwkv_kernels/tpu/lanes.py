"""Where heads lie in [T, C], C = H * N channels on lanes: products by head that move no lane.

What is unusual: no head is ever sliced out. A TPU register holds 8 x 128 numbers, and cutting 80
channels from a row of 640 would turn lanes against each other, in the one unit that was the limit
of a kernel that did so. Here lanes are taken in aligned blocks of 128, and one operand of a product
is masked to a head's lanes instead: the matrix unit multiplies the zeros for nothing, because it is
128 wide anyway.

Several heads share one product. With L tokens a tile, 128 / L heads form a group, and `stack` puts
their masked copies one below the other: [L of head a; L of head b] by 128 lanes. A product with it
has the scores of both heads side by side on its 128 lanes, and the product of such scores with it
has each head's output on its own lanes.
"""

import dataclasses
import functools
from collections.abc import Iterable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

LANES = 128
SUBLANES = 8


@dataclasses.dataclass(frozen=True)
class Lanes:
    """The static places of heads, and how products are taken.

    Attributes:
      heads: H.
      head_size: N.
      tile: L, tokens a tile at most; divides 128.
      operand_dtype: what operands of products are rounded to: "bfloat16" or "float32".
    """

    heads: int
    head_size: int
    tile: int
    operand_dtype: str

    @property
    def channels(self) -> int:
        """Lanes in use, whole blocks of them: H * N and at most 127 of padding."""
        return -(-self.heads * self.head_size // LANES) * LANES

    @property
    def blocks(self) -> int:
        return self.channels // LANES

    @functools.cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The heads of each group."""
        size = LANES // self.tile
        heads = range(self.heads)
        return tuple(tuple(heads[i : i + size]) for i in range(0, self.heads, size))

    def group_blocks(self, group: tuple[int, ...]) -> range:
        """The blocks of lanes that a group's heads lie in."""
        first, last = group[0] * self.head_size, (group[-1] + 1) * self.head_size - 1
        return range(first // LANES, last // LANES + 1)

    @functools.cached_property
    def state_blocks(self) -> tuple[tuple[int, int], ...]:
        """(value block, key block) wherever the two share a head: what is not zero of a state."""
        return tuple(
            (i, j)
            for i in range(self.blocks)
            for j in range(self.blocks)
            if self.heads_of(i) & self.heads_of(j)
        )

    def heads_of(self, block: int) -> set[int]:
        """The heads that have channels in a block."""
        last = min((block + 1) * LANES, self.heads * self.head_size) - 1
        return set(range(block * LANES // self.head_size, last // self.head_size + 1))

    # --- products -----------------------------------------------------------------------------

    def dot(self, a: Array, b: Array, contract: tuple[int, int]) -> Float[Array, "_ _"]:
        """A product of operands in their dtype, summed in float32."""
        exact = self.operand_dtype == "float32"
        precision = lax.Precision.HIGHEST if exact else lax.Precision.DEFAULT
        return lax.dot_general(
            a,
            b,
            (((contract[0],), (contract[1],)), ((), ())),
            precision=precision,  # whatever `jax.default_matmul_precision` is
            preferred_element_type=jnp.float32,
        )

    def operand(self, x: Array) -> Array:
        return x.astype(self.operand_dtype)

    def stack(self, x: Float[Array, "R C"]) -> "Stack":
        """Masked copies of x for every group and each of its blocks, as operands."""
        R = x.shape[0]
        fill = jnp.zeros((self.tile - R, LANES), jnp.float32)
        lane = lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
        stacks = []
        for group in self.groups:
            of_group = []
            for block in self.group_blocks(group):
                y = of_block(x, block)
                rows = []
                for head in group:
                    start = head * self.head_size - block * LANES
                    stop = start + self.head_size
                    if start <= 0 and stop >= LANES:
                        rows.append(y)
                    elif stop <= 0 or start >= LANES:
                        rows.append(jnp.zeros_like(y))
                    else:
                        rows.append(jnp.where((lane >= start) & (lane < stop), y, 0))
                    if self.tile > R:
                        rows.append(fill)
                missing = LANES - len(group) * self.tile
                if missing:
                    rows.append(jnp.zeros((missing, LANES), jnp.float32))
                of_group.append(self.operand(jnp.concatenate(rows, axis=0)))
            stacks.append(tuple(of_group))
        return tuple(stacks)

    def scores(self, x: Float[Array, "R C"], stack: "Stack") -> list[Float[Array, "R 128"]]:
        """x_h y_h^T of every head h: a group's heads side by side, L lanes each."""
        x = self.operand(x)
        return [
            functools.reduce(
                jnp.add,
                (
                    self.dot(of_block(x, block), y, (1, 1))
                    for block, y in zip(self.group_blocks(group), of_group, strict=True)
                ),
            )
            for group, of_group in zip(self.groups, stack, strict=True)
        ]

    def apply(self, scores: list[Float[Array, "R 128"]], stack: "Stack") -> Float[Array, "R C"]:
        """A_h y_h of every head h, each on its own lanes."""
        parts = (
            (block, self.dot(self.operand(A), y, (1, 0)))
            for A, group, of_group in zip(scores, self.groups, stack, strict=True)
            for block, y in zip(self.group_blocks(group), of_group, strict=True)
        )
        return self.join_blocks(parts)

    def join_blocks(self, parts: Iterable[tuple[int, Array]]) -> Float[Array, "R C"]:
        """Sums (block, [R, 128]) by block, and puts the blocks side by side."""
        blocks: dict[int, Array] = {}
        for block, part in parts:
            blocks[block] = blocks[block] + part if block in blocks else part
        return jnp.concatenate([blocks[i] for i in range(self.blocks)], axis=1)

    def pair(self, rows: int) -> tuple[Array, Array]:
        """(t, s) of each score: int32 [R, 128]; the same for every group."""
        t = lax.broadcasted_iota(jnp.int32, (rows, LANES), 0)
        s = lax.broadcasted_iota(jnp.int32, (rows, LANES), 1) % self.tile
        return t, s


Stack = tuple[tuple[Array, ...], ...]


def of_block(x: Float[Array, "R C"], block: int) -> Float[Array, "R 128"]:
    return x[:, block * LANES : (block + 1) * LANES]


def round_up(x: int, multiple: int) -> int:
    return -(-x // multiple) * multiple
