"""States between tiles, laid out so that no lane moves: transposed, in blocks of 128 x 128.

A state is S = sum of decayed k^T v, key x value. Kept as value x key, the decay of a key channel
lies along lanes, as it comes; a token reads it by the same kind of product that makes scores. Of
[C, C] only blocks that hold a part of a head exist (`Lanes.state_blocks`), and what such a block
holds between two heads is masked away when it is written.

A state is a ref [P, 128, 128] in VMEM, one slice a block; `mask` has the same shape.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rwkv_kernels.tpu.lanes import LANES, Lanes, of_block


def read(lanes: Lanes, x: Float[Array, "R C"], state) -> Float[Array, "R C"]:
    """x S: from key channels to value channels."""
    x = lanes.operand(x)
    return lanes.join_blocks(
        (
            (value, lanes.dot(of_block(x, key), lanes.operand(state[p]), (1, 1)))
            for p, (value, key) in enumerate(lanes.state_blocks)
        )
    )


def read_back(lanes: Lanes, x: Float[Array, "R C"], state) -> Float[Array, "R C"]:
    """x S^T: from value channels to key channels."""
    x = lanes.operand(x)
    return lanes.join_blocks(
        (
            (key, lanes.dot(of_block(x, value), lanes.operand(state[p]), (1, 0)))
            for p, (value, key) in enumerate(lanes.state_blocks)
        )
    )


def advance(
    lanes: Lanes,
    source,
    target,
    mask,
    key: Float[Array, "R C"],
    value: Float[Array, "R C"],
    total: Float[Array, "1 C"],
) -> None:
    """target <- total source + key^T value, where key already carries the decays to the edge.

    A source of None is a state of zeros.
    """
    key, value = lanes.operand(key), lanes.operand(value)
    for p, (i, j) in enumerate(lanes.state_blocks):
        new = mask[p] * lanes.dot(of_block(value, i), of_block(key, j), (0, 0))
        target[p] = new if source is None else of_block(total, j) * source[p] + new


def decay_gradient(lanes: Lanes, state, dstate) -> Float[Array, "1 C"]:
    """Of a state that was decayed as a whole: the sum over value channels of S dS."""
    return lanes.join_blocks(
        (
            (key, jnp.sum(state[p] * dstate[p], axis=0, keepdims=True))
            for p, (_, key) in enumerate(lanes.state_blocks)
        )
    )


def mask(lanes: Lanes) -> Float[Array, "P 128 128"]:
    """1 where a value channel and a key channel belong to one head."""
    channel = np.arange(lanes.channels).reshape(-1, LANES)  # [C] -> [blocks, 128]
    head = channel // lanes.head_size
    value, key = np.array(lanes.state_blocks).T
    same = head[value][:, :, None] == head[key][:, None, :]
    some = channel[value][:, :, None] < lanes.heads * lanes.head_size
    return jnp.asarray(same & some, jnp.float32)


def from_heads(lanes: Lanes, state: Float[Array, "B H N N"]) -> Float[Array, "B P 128 128"]:
    """From key x value of every head. No more is ever made than the blocks: of all channels by all
    channels there are H times as many numbers.
    """
    transposed = jnp.swapaxes(state, 2, 3)  # value x key
    blocks = []
    for value, key in lanes.state_blocks:
        parts = []
        for head in lanes.heads_of(value) & lanes.heads_of(key):
            of_value, of_key = (_Part.of(lanes, head, block) for block in (value, key))
            part = transposed[:, head, of_value.of_head, of_key.of_head]
            parts.append(jnp.pad(part, ((0, 0), of_value.padding, of_key.padding)))
        blocks.append(sum(parts[1:], parts[0]))
    return jnp.stack(blocks, axis=1)


def to_heads(lanes: Lanes, blocks: Float[Array, "B P 128 128"]) -> Float[Array, "B H N N"]:
    """Back to key x value of every head."""
    place = {pair: p for p, pair in enumerate(lanes.state_blocks)}
    heads = []
    for head in range(lanes.heads):
        parts = {i: _Part.of(lanes, head, i) for i in lanes.group_blocks((head,))}
        rows = [
            jnp.concatenate(
                [
                    blocks[:, place[i, j], of_value.of_block, of_key.of_block]
                    for j, of_key in parts.items()
                ],
                axis=2,
            )
            for i, of_value in parts.items()
        ]
        heads.append(jnp.concatenate(rows, axis=1))
    return jnp.swapaxes(jnp.stack(heads, axis=1), 2, 3)


class _Part(NamedTuple):
    """Which of a head's channels lie in a block of 128, and where."""

    of_head: slice
    of_block: slice

    @staticmethod
    def of(lanes: Lanes, head: int, block: int) -> "_Part":
        begin, end = head * lanes.head_size, (head + 1) * lanes.head_size
        first, last = max(begin, block * LANES), min(end, (block + 1) * LANES)
        return _Part(
            slice(first - begin, last - begin), slice(first - block * LANES, last - block * LANES)
        )

    @property
    def padding(self) -> tuple[int, int]:
        return self.of_block.start, LANES - self.of_block.stop
