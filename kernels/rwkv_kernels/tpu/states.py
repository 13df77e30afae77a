"""States between tiles, laid out so that no lane moves: transposed, in blocks of 128 x 128.

A state is S = sum of decayed k^T v, key x value. Kept as value x key, the decay of a key channel
lies along lanes, as it comes; a token reads it by the same kind of product that makes scores. Of
[C, C] only blocks that hold a part of a head exist (`Lanes.state_blocks`), and what such a block
holds between two heads is masked away when it is written.

A state is a ref [P, 128, 128] in VMEM, one slice a block; `mask` has the same shape.
"""

import jax.numpy as jnp
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
    channel = jnp.arange(lanes.channels)
    head = channel // lanes.head_size
    same = (head[:, None] == head[None, :]) & (channel[:, None] < lanes.heads * lanes.head_size)
    return cut(lanes, same.astype(jnp.float32)[None])[0]


def cut(lanes: Lanes, full: Float[Array, "B C C"]) -> Float[Array, "B P 128 128"]:
    """The blocks of states given as whole matrices, value x key."""
    return jnp.stack(
        [full[:, _block(i), _block(j)] for i, j in lanes.state_blocks],
        axis=1,
    )


def from_heads(lanes: Lanes, state: Float[Array, "B H N N"]) -> Float[Array, "B P 128 128"]:
    """From key x value of every head."""
    B, H, N, _ = state.shape
    eye = jnp.eye(H, dtype=state.dtype)
    full = jnp.einsum("bhnm,hi->bhmin", state, eye).reshape(B, H * N, H * N)  # value x key
    padding = lanes.channels - H * N
    return cut(lanes, jnp.pad(full, ((0, 0), (0, padding), (0, padding))))


def to_heads(lanes: Lanes, blocks: Float[Array, "B P 128 128"]) -> Float[Array, "B H N N"]:
    """Back to key x value of every head."""
    B = blocks.shape[0]
    H, N = lanes.heads, lanes.head_size
    full = jnp.zeros((B, lanes.channels, lanes.channels), blocks.dtype)
    for p, (i, j) in enumerate(lanes.state_blocks):
        full = full.at[:, _block(i), _block(j)].set(blocks[:, p])
    full = full[:, : H * N, : H * N].reshape(B, H, N, H, N)  # value x key, both by head
    heads = jnp.arange(H)
    return jnp.swapaxes(full[:, heads, :, heads, :], 2, 3).swapaxes(0, 1)


def _block(i: int) -> slice:
    return slice(i * LANES, (i + 1) * LANES)
