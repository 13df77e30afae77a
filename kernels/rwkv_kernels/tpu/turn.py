"""Samples that lie side by side, turned in fast memory so that each is a sequence, and back.

What is unusual: eight tokens by 128 channels at a time, in the dtype that they have. Of a whole
array the compiler loads more than its registers hold, and bfloat16 fills half as many of them. On a
v5e that is 1.8 (bfloat16) and 2 bundles a register of float32, in the place of 3.5.
"""

from collections.abc import Iterator

import jax.numpy as jnp

from rwkv_kernels.tpu.lanes import LANES, SUBLANES


def to_samples(source, target) -> None:
    """source [T, S, C] in VMEM -> target [S, T, C], float32; T in eights, C in blocks of lanes."""
    T, _, C = source.shape
    for tokens, lanes in _pieces(T, C):
        turned = jnp.swapaxes(source[tokens, :, lanes], 0, 1)
        target[:, tokens, lanes] = turned.astype(target.dtype)


def from_samples(source, target) -> None:
    """source [S, T, C], float32 -> target [T, S, C] in its dtype."""
    T, _, C = target.shape
    for tokens, lanes in _pieces(T, C):
        piece = source[:, tokens, lanes].astype(target.dtype)
        target[tokens, :, lanes] = jnp.swapaxes(piece, 0, 1)


def _pieces(T: int, C: int) -> Iterator[tuple[slice, slice]]:
    for t in range(0, T, SUBLANES):
        for c in range(0, C, LANES):
            yield slice(t, t + SUBLANES), slice(c, c + LANES)
