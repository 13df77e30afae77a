"""How a call of the chunked WKV is cut into tiles, chunks and groups; tuned values as data."""

import dataclasses

import jax.numpy as jnp

from rwkv_kernels.dyadic import Chunk

# Measured on 2 cores with 2 MB of L2 cache each: up to UNSPLIT_BYTES of one float32 [B, T, H, N]
# array the batch is taken at once; beyond it in groups, with near GROUP_BYTES of one
# [group, chunk, H, N]. Accelerators, with no such cache and the batch sharded, take it at once.
UNSPLIT_BYTES = {"cpu": 1_500_000}
GROUP_BYTES = {"cpu": 100_000}
LONGEST_TILE = 20
LONGEST_SINGLE_CHUNK = 96  # beyond it, states between chunks are cheaper than one more level
CHUNK = 32


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a call is cut up. Hashable: it is what a compiled function is specialised to.

    Attributes:
      chunk: the shape of a chunk.
      chunks: how many there are; chunk.steps * chunks >= T, the rest is padding.
      group: batch elements worked on at once; divides B.
      stateful: whether states are carried at all.
    """

    chunk: Chunk
    chunks: int
    group: int
    stateful: bool


def plan(shape: tuple[int, ...], dtype, platform: str, *, causal: bool) -> Plan:
    """Cuts [B, T, H, N] so that little is padding: tiles and chunks are balanced, not full."""
    B, T, H, N = shape
    chunks = 1 if T <= LONGEST_SINGLE_CHUNK else -(-T // CHUNK)
    steps = -(-T // chunks)
    tiles = -(-steps // LONGEST_TILE)
    tile = -(-steps // tiles)
    chunks = -(-T // (tile * tiles))
    group = B
    if platform in GROUP_BYTES and UNSPLIT_BYTES[platform] < 4 * B * T * H * N:
        wanted = GROUP_BYTES[platform] / (4 * tile * tiles * H * N)
        divisors = [d for d in range(1, B + 1) if B % d == 0]
        group = min(divisors, key=lambda d: max(d / wanted, wanted / d))  # nearest as a ratio
    rounds = platform != "cpu" and dtype == jnp.bfloat16
    chunk = Chunk(tiles, tile, causal, operand_dtype="bfloat16" if rounds else None)
    return Plan(chunk, chunks, group, stateful=causal or chunks > 1)
