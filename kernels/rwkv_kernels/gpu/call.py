"""What the kernels' calls have in common: the grid, how tokens and states come and go."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from rwkv_kernels.gpu.plan import TILE
from rwkv_kernels.gpu.warpgroup import Warpgroup


class Block:
    """What a block of the grid works on: one head of one sequence, or one tile of it.

    Arrays of tokens in main memory are [B, T, H * N], states [B, H, tiles + 1, N, N]: state i is
    that at the border to the left of tile i, the last that to the right of all.
    """

    def __init__(self, wg: Warpgroup, barriers):
        self.plan = wg.plan
        self.batch, self.head = lax.axis_index("batch"), lax.axis_index("head")
        self._barriers = barriers

    @property
    def tile(self) -> Array:
        return lax.axis_index("tile")

    @property
    def _channels(self):
        return pl.ds(self.head * self.plan.head_size, self.plan.head_size)

    def tokens_in(self, tile: int | Array) -> Array:
        """How many rows of a tile are tokens."""
        return jnp.minimum(self.plan.tokens - TILE * tile, TILE)

    def fill(self, tile: int | Array, tokens=(), states=()) -> None:
        """Copies into shared memory, all at once, and waits.

        tokens: (array, target [64, N]), zeros where the array ends; states: (array, border, target
        [N, N]), None being the border of an array that has no other.
        """
        # 64 rows whatever the array has left: the copy engine fills up with zeros.
        rows = pl.ds(TILE * tile, TILE)
        copies = [(x.at[self.batch, rows, self._channels], target) for x, target in tokens]
        copies += [(x.at[self._state(border)], target) for x, border, target in states]
        plgpu.commit_smem()  # all threads have read what is overwritten
        for i, (source, target) in enumerate(copies):
            plgpu.copy_gmem_to_smem(source, target, self._barriers.at[i])
        for i in range(len(copies)):
            plgpu.barrier_wait(self._barriers.at[i])

    def write(self, tile: int | Array, *copies) -> None:
        """Copies tiles (source [64, N], array) to their places in main memory."""
        plan, last = self.plan, self.plan.tiles - 1

        def copy(rows: int) -> None:
            for source, array in copies:
                target = array.at[self.batch, pl.ds(TILE * tile, rows), self._channels]
                plgpu.copy_smem_to_gmem(source.at[pl.ds(0, rows)], target)

        plgpu.commit_smem()
        if last == 0 or plan.last_rows == TILE:
            copy(plan.last_rows)
        else:
            pl.when(tile == last)(lambda: copy(plan.last_rows))
            pl.when(tile < last)(lambda: copy(TILE))
        plgpu.wait_smem_to_gmem(0)

    def write_row(self, tile: int | Array, source, array) -> None:
        """Copies the first row of [64, N] to [B, tiles, H * N]."""
        plgpu.commit_smem()
        target = array.at[self.batch, pl.ds(tile, 1), self._channels]
        plgpu.copy_smem_to_gmem(source.at[pl.ds(0, 1)], target)
        plgpu.wait_smem_to_gmem(0)

    def write_state(self, border: int | Array | None, source, array) -> None:
        """Copies [N, N] to a border's state."""
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(source, array.at[self._state(border)])
        plgpu.wait_smem_to_gmem(0)

    def _state(self, border: int | Array | None):
        return (self.batch, self.head) if border is None else (self.batch, self.head, border)


def kernel_call(
    body: Callable[..., None],
    wg: Warpgroup,
    inputs: Mapping[str, Array | None],
    outputs: Mapping[str, jax.ShapeDtypeStruct],
    scratch: Mapping[str, Any],
    *,
    grid: tuple[int, ...],
    copies: int,
    name: str,
) -> dict[str, Array]:
    """Runs `body(block, **refs)` over the grid (batch, head[, tile]); refs by the names given here.

    Inputs may be None, and are None in the body then; copies: at most so many come in at once.
    """
    given = {name: x for name, x in inputs.items() if x is not None}

    def kernel(*refs, barriers, **shared):
        arrays = dict(zip((*given, *outputs), refs, strict=True))
        body(Block(wg, barriers), **dict.fromkeys(inputs) | arrays | shared)

    kernel.__name__ = name  # what profiles and dumps call it
    interpret = {} if wg.interpret is None else {"interpret": wg.interpret}
    results = plgpu.kernel(
        kernel,
        out_type=tuple(outputs.values()),
        scratch_types={**scratch, "barriers": plgpu.Barrier(num_barriers=copies)},
        grid=grid,
        grid_names=("batch", "head", "tile")[: len(grid)],
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        **interpret,
    )(*given.values())
    return dict(zip(outputs, results, strict=True))
