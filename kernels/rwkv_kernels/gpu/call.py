"""What the kernels' calls have in common: the grid, how tokens and states come and go."""

import functools
from collections.abc import Callable, Mapping, Sequence
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
    """What a block of the grid works on, as one of its warpgroups sees it.

    Arrays of tokens in main memory are [B, T, H * N], states [B, H, tiles + 1, N, N]:
    state i is that at the border to the left of tile i, the last that to the right of all.

    Attributes:
      index: which of the block's warpgroups this is.
      first, width: this warpgroup's channels of its head.
    """

    def __init__(self, wg: Warpgroup, index: int, first: int | Array, copied, met):
        self.plan, self.widths = wg.plan, wg.widths
        self.index, self.first, self.width = index, first, wg.widths[index]
        self.batch, self.head = lax.axis_index("batch"), lax.axis_index("head")
        self._copied, self._met = copied, met

    @property
    def channels(self):
        """This warpgroup's channels of all [H * N]."""
        return pl.ds(self.head * self.plan.head_size + self.first, self.width)

    @property
    def own(self):
        """This warpgroup's channels of a head's N."""
        return pl.ds(self.first, self.width)

    @property
    def slices(self) -> list[tuple[int, int]]:
        """Each warpgroup's first channel of a head, and how many."""
        firsts = [sum(self.widths[:i]) for i in range(len(self.widths))]
        return list(zip(firsts, self.widths, strict=True))

    @property
    def others(self) -> tuple[int, ...]:
        return tuple(i for i in range(len(self.widths)) if i != self.index)

    def tokens_in(self, tile: int | Array) -> Array:
        """How many rows of a tile are tokens."""
        return jnp.minimum(self.plan.tokens - TILE * tile, TILE)

    def tokens(self, array, tile: int | Array, *, whole: bool = False):
        """A tile's 64 rows of an array of tokens, its last ones perhaps beyond the array's end.

        The copy engine fills up with zeros. whole: all of the head's channels.
        """
        N = self.plan.head_size
        channels = pl.ds(self.head * N, N) if whole else self.channels
        return array.at[self.batch, pl.ds(TILE * tile, TILE), channels]

    def state(self, array, border: int | Array):
        """This warpgroup's columns of the state at a border, [N, width]."""
        return array.at[self.batch, self.head, border, :, self.own]

    def start(self, copies: Sequence[tuple], first: int | Array = 0) -> None:
        """Begins to copy (source, target in shared memory), each with a barrier of its own."""
        plgpu.commit_smem()  # all threads have read what is overwritten
        for i, (source, target) in enumerate(copies):
            plgpu.copy_gmem_to_smem(source, target, self._copied.at[first + i])

    def wait(self, copies: int, first: int | Array = 0) -> None:
        for i in range(copies):
            plgpu.barrier_wait(self._copied.at[first + i])

    def fill(self, copies: Sequence[tuple]) -> None:
        """Copies into shared memory, all at once, and waits."""
        self.start(copies)
        self.wait(len(copies))

    def meet(self) -> None:
        """Waits for the block's other warpgroups, to whom what was written before is then known."""
        if len(self.widths) > 1:
            plgpu.commit_smem()
            plgpu.barrier_arrive(self._met)
            plgpu.barrier_wait(self._met)

    def exchange(self, wg: Warpgroup, sums: list[Array], rooms) -> Array:
        """The sum over warpgroups of what each has for this one's channels.

        sums: for each warpgroup's channels [64, width]; rooms: each one's shared memory for it.
        """
        for i in self.others:
            rooms[i][...] = sums[i]
        self.meet()
        return sums[self.index] + wg.load(rooms[self.index]) if self.others else sums[self.index]

    def write(self, tile: int | Array, *copies) -> None:
        """Copies tiles (source [64, width], array) to their places in main memory."""
        plan, last = self.plan, self.plan.tiles - 1

        def copy(rows: int) -> None:
            for source, array in copies:
                target = array.at[self.batch, pl.ds(TILE * tile, rows), self.channels]
                plgpu.copy_smem_to_gmem(source.at[pl.ds(0, rows)], target)

        plgpu.commit_smem()
        if last == 0 or plan.last_rows == TILE:
            copy(plan.last_rows)
        else:
            pl.when(tile == last)(lambda: copy(plan.last_rows))
            pl.when(tile < last)(lambda: copy(TILE))
        plgpu.wait_smem_to_gmem(0)

    def write_row(self, row: int | Array, source, array) -> None:
        """Copies the first row of [64, width] to [B, rows, H * N]."""
        self.write_to(array.at[self.batch, pl.ds(row, 1), self.channels], source.at[pl.ds(0, 1)])

    def write_to(self, *copies) -> None:
        """Copies (target in main memory, source in shared memory, and so on in turn)."""
        plgpu.commit_smem()
        for target, source in zip(copies[::2], copies[1::2], strict=True):
            plgpu.copy_smem_to_gmem(source, target)
        plgpu.wait_smem_to_gmem(0)


def kernel_call(
    body: Callable[..., None],
    wg: Warpgroup,
    inputs: Mapping[str, Array | None],
    outputs: Mapping[str, jax.ShapeDtypeStruct],
    own: Callable[[int], Mapping[str, Any]],
    shared: Mapping[str, Any],
    *,
    grid: tuple[int, ...],
    copies: int,
    first: Callable[[], Array] | None = None,
    name: str,
) -> dict[str, Array]:
    """Runs `body(block, **refs)` over the grid (batch, head, part) by each warpgroup of a block.

    Inputs may be None, and are None in the body then. own: a warpgroup's shared memory, by the
    number of its channels; shared: that of all. copies: at most so many come in at once. first: the
    first channel, where a block has not all of a head's.
    """
    given = {name: x for name, x in inputs.items() if x is not None}
    many = len(wg.widths) > 1

    def kernel(*refs, copied, met, own, shared):
        arrays = dict(zip((*given, *outputs), refs, strict=True))

        def run(i: int) -> None:
            start = sum(wg.widths[:i]) if first is None else first()
            block = Block(wg, i, start, copied[i], met)
            body(block, **dict.fromkeys(inputs) | arrays | own[i] | shared)

        if many:
            # One branch each, not one after the other, that nothing is held for the next one's use.
            lax.switch(lax.axis_index("warpgroup"), [functools.partial(run, i) for i in range(2)])
        else:
            run(0)

    kernel.__name__ = name  # what profiles and dumps call it
    scratch: Any = {
        "own": [dict(own(width)) for width in wg.widths],
        "shared": dict(shared),
        "copied": [plgpu.Barrier(num_barriers=copies) for _ in wg.widths],
        "met": plgpu.Barrier(num_arrivals=len(wg.widths)) if many else None,
    }
    threads: dict[str, Any] = (
        {"num_threads": len(wg.widths), "thread_name": "warpgroup"} if many else {}
    )
    interpret: dict[str, Any] = {} if wg.interpret is None else {"interpret": wg.interpret}
    results = plgpu.kernel(
        kernel,
        out_type=tuple(outputs.values()),
        scratch_types=scratch,
        grid=grid,
        grid_names=("batch", "head", "part")[: len(grid)],
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        **threads,
        **interpret,
    )(*given.values())
    return dict(zip(outputs, results, strict=True))
