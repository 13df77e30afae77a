"""Kernels to which tokens are all alike: some of them at a time, with all of their channels.

Tokens are [P, Q, D], as they lie in memory. XLA keeps [B, T, D] as [T, B, D] where T is no multiple
of a register's rows, because that needs no padding; then these kernels do, too.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32

from rwkv_kernels.launch import launch

ROWS = 16  # of a register of bfloat16
_MOST_ROWS = 256
# A kernel has 16 MiB of VMEM unless it asks for more, and a TPU v4 has no more. A token takes up to
# 56 bytes a channel: eight arrays of bfloat16 twice, and six of float32 that are worked with.
_BYTES, _TOKEN_BYTES = 10 * 2**20, 56


def block_rows(tokens: int, channels: int) -> int:
    """The most tokens that a block may have, of as many as there are; 0 if they cannot be cut."""
    most = min(_MOST_ROWS, _BYTES // (_TOKEN_BYTES * channels) // ROWS * ROWS)
    return next((rows for rows in range(most, 0, -ROWS) if tokens % rows == 0), 0)


def dot(x: Array, y: Array, axes: tuple[tuple[int], tuple[int]]) -> Float32[Array, "_ _"]:
    """A product that contracts an axis of each, summed in float32."""
    return lax.dot_general(
        x,
        y,
        (axes, ((), ())),
        precision=lax.Precision.DEFAULT,  # whatever `jax.default_matmul_precision` is
        preferred_element_type=jnp.float32,
    )


def unservable(shape: tuple[int, ...]) -> tuple[str, ...]:
    """Every reason why tokens [B, T, D] cannot be cut into blocks; nothing if they can."""
    if len(shape) == 3 and any(block_rows(tokens, shape[2]) for tokens in shape[:2]):
        return ()
    most = _BYTES // (_TOKEN_BYTES * ROWS)
    return (
        f"tokens {shape[:-1]} of {shape[-1]} channels, but it takes [B, T], one of them a multiple "
        f"of {ROWS}, of at most {most} channels",
    )


def as_they_lie(*arrays: Float[Array, "B T _"], like: tuple[int, ...]) -> list[Array]:
    """Arrays as kernels see them, [P, Q, _], or back again; like: the shape of [B, T, D]."""
    turned = not block_rows(like[1], like[2])
    return [jnp.swapaxes(x, 0, 1) if turned else x for x in arrays]


def call(
    kernel: Callable[..., None],
    tokens: Sequence[Array],
    weights: Sequence[Array],
    of_tokens: Sequence[Any],
    of_weights: Sequence[Any] = (),
    *,
    flops: int,
    name: str,
    interpret,
) -> list[Array]:
    """Runs a kernel over blocks of tokens.

    Args:
      kernel: takes references, of tokens and results [rows, _].
      tokens: arrays [P, Q, _].
      weights: arrays that each block has whole.
      of_tokens, of_weights: results, by their shapes and dtypes. Those like weights are summed up,
        from zeros, in fast memory: one block comes after the other then.
      flops: of a token, of its products.
      interpret: False, or the TPU interpreter's parameters.
    """
    P, Q, D = tokens[0].shape
    rows = block_rows(Q, D)

    def cut(x) -> pl.BlockSpec:
        return pl.BlockSpec((None, rows, x.shape[2]), lambda i, j: (i, j, 0))

    def whole(x) -> pl.BlockSpec:
        return pl.BlockSpec(x.shape, lambda i, j: (0,) * len(x.shape))

    def from_zeros(*refs) -> None:
        @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
        def _():
            for total in refs[len(refs) - len(of_weights) :]:
                total[...] = jnp.zeros_like(total)

        kernel(*refs)

    results = (*of_tokens, *of_weights)
    sizes = (x.size * x.dtype.itemsize for x in (*tokens, *weights, *results))
    cost = pl.CostEstimate(flops=flops * P * Q, bytes_accessed=sum(sizes), transcendentals=0)
    call = pl.pallas_call(
        from_zeros,
        grid=(P, Q // rows),
        in_specs=[*map(cut, tokens), *map(whole, weights)],
        out_specs=[*map(cut, of_tokens), *map(whole, of_weights)],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=2 * ("arbitrary" if of_weights else "parallel",)
        ),
        cost_estimate=cost,
        interpret=interpret,
        name=name,
    )
    return launch(call, *tokens, *weights)
