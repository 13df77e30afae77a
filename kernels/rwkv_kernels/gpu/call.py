"""What the kernels' calls have in common: the grid, how tokens and states come and go."""

import math
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
    """What a warpgroup works on, and which others it has to wait for.

    Arrays of tokens in main memory are [B, T, H * N], states [flows, B, H, tiles + 1, N, N]: state
    i is that at the border to the left of tile i, the last that to the right of all. Flow 0 goes to
    the right, flow 1 to the left.

    Attributes:
      batch, head, part: where it is in the grid.
      first, width: its channels of the head.
      index: which of the block's warpgroups it is.
    """

    def __init__(
        self, wg: Warpgroup, index: Array, place: tuple[Array, Array, Array],
        copied, first_copy: Array, met,
    ) -> None:  # fmt: skip
        self.plan, self.width, self.index = wg.plan, wg.width, index
        self._wg, self._met = wg, met
        self.batch, self.head, part = place
        blocks = wg.plan.head_size // wg.width  # that share a head's channels
        self.part, self.first = lax.div(part, blocks), lax.rem(part, blocks) * wg.width
        self._copied, self._first_copy = copied, first_copy

    def own(self, memory, *, anew: int | Array = 0):
        """This warpgroup's of shared memory of which each has its own.

        anew: another number for another part of a kernel, or a loop's turn. The compiler would work
        out all addresses at the beginning, and has not the registers to keep them.
        """
        return _at(memory, self.index, anew)

    def of(self, index: Array, memory, *, anew: int | Array = 0):
        """Another warpgroup's."""
        return _at(memory, index, anew)

    def only(self, memory, *, anew: int | Array = 0):
        """The one of main memory [1, ...], read again."""
        return _at(memory, jnp.int32(0), anew)

    def wait_for_all(self) -> None:
        """Until all of the block's warpgroups are here, to each of whom is known then what another
        has written, and none reads any more what was in turn before.
        """
        plgpu.commit_smem()
        if self._wg.warpgroups > 1:
            plgpu.barrier_arrive(self._met)
            plgpu.barrier_wait(self._met)

    @property
    def channels(self):
        """The warpgroup's channels of all [H * N]."""
        return pl.ds(self.head * self.plan.head_size + self.first, self.width)

    @property
    def of_head(self):
        """The warpgroup's channels of a head's N."""
        return pl.ds(self.first, self.width)

    @property
    def levels(self) -> int | Array:
        """How many levels the tokens of its tile have among themselves."""
        plan, last = self.plan, (self.plan.last_rows - 1).bit_length()
        if plan.tiles == 1:
            return last
        return jnp.where(self.part == plan.tiles - 1, last, plan.levels)

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

    def state(self, array, flow: int | Array, border: int | Array):
        """The warpgroup's columns of a flow's state at a border, [N, width]."""
        return array.at[flow, self.batch, self.head, border, :, self.of_head]

    def unless_nothing_comes(
        self, flow: int | Array, add: Callable[[Any], Any], carry: Any, *, against: bool = False
    ) -> Any:
        """add(carry); or carry as it is, where the tile is the first on a flow's way, or with
        `against` the last, and no state comes to it from there.

        To a causal WKV's one flow states come everywhere, and the branch is always taken. It is one
        all the same: the compiler works out nothing of it before, and has not the registers to.
        """
        first = jnp.where((flow == 0) != against, 0, self.plan.tiles - 1)
        nothing = jnp.int32(flow) > 0 if self.plan.causal else self.part == first
        return lax.cond(nothing, lambda carry: carry, add, carry)

    def start(self, copies: Sequence[tuple], first: int | Array = 0) -> None:
        """Begins to copy (source, target in shared memory), each with a barrier of its own."""
        plgpu.commit_smem()  # all threads have read what is overwritten
        for i, (source, target) in enumerate(copies):
            plgpu.copy_gmem_to_smem(source, target, self._copied.at[self._first_copy + first + i])

    def wait(self, copies: int, first: int | Array = 0) -> None:
        """Until as many have come, counted from `first` as in `start`."""
        for i in range(copies):
            plgpu.barrier_wait(self._copied.at[self._first_copy + first + i])

    def fill(self, copies: Sequence[tuple]) -> None:
        """Copies into shared memory, all at once, and waits."""
        self.start(copies)
        self.wait(len(copies))

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
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    def write_to(self, target, source, *, arrived: bool = False) -> None:
        """Copies shared memory to a place in main memory, and waits until it has been read, or has
        arrived.
        """
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(source, target)
        plgpu.wait_smem_to_gmem(0, wait_read_only=not arrived)


def _at(memory, index: Array, anew: int | Array):
    """memory[index], by an index that the compiler cannot know before: it does not see through the
    barrier that what is added is 0.
    """
    number = jnp.asarray(anew, jnp.int32)
    index = index + (lax.optimization_barrier(number) - number)
    return jax.tree.map(lambda ref: ref.at[index], memory)


def kernel_call(
    body: Callable[..., None],
    wg: Warpgroup,
    inputs: Mapping[str, Array | None],
    outputs: Mapping[str, jax.ShapeDtypeStruct],
    scratch: Mapping[str, Any],
    *,
    grid: tuple[int, int, int],
    copies: int,
    name: str,
) -> dict[str, Array]:
    """Runs `body(block, **refs)` over the grid: batches, heads, parts of a head.

    Each of a block's warpgroups works on a part of a head. Inputs may be None, and are None in the
    body then. scratch: shared memory. copies: at most so many come in to each at once.
    """
    given = {name: x for name, x in inputs.items() if x is not None}
    _, heads, parts = grid
    many = wg.warpgroups > 1

    def kernel(*refs, copied, met, scratch):
        index = lax.axis_index("warpgroup") if many else jnp.int32(0)
        place = lax.axis_index("block") * wg.warpgroups + index
        head = lax.div(place, parts)
        at = lax.div(head, heads), lax.rem(head, heads), lax.rem(place, parts)
        arrays = dict(zip((*given, *outputs), refs, strict=True))
        block = Block(wg, index, at, copied, index * copies, met)
        body(block, **dict.fromkeys(inputs) | arrays | scratch)

    kernel.__name__ = name  # what profiles and dumps call it
    memory: Any = {
        "scratch": dict(scratch),
        "copied": plgpu.Barrier(num_barriers=copies * wg.warpgroups),
        "met": plgpu.Barrier(num_arrivals=wg.warpgroups) if many else None,
    }
    threads: dict[str, Any] = {}
    if many:
        threads = {"num_threads": wg.warpgroups, "thread_name": "warpgroup"}
    interpret: dict[str, Any] = {} if wg.interpret is None else {"interpret": wg.interpret}
    results = plgpu.kernel(
        kernel,
        out_type=tuple(outputs.values()),
        scratch_types=memory,
        grid=(math.prod(grid) // wg.warpgroups,),
        grid_names=("block",),
        compiler_params=plgpu.CompilerParams(
            approx_math=True,
            lowering_semantics=plgpu.LoweringSemantics.Lane,
            unsafe_no_auto_barriers=True,  # see warpgroup.py
            reduction_scratch_bytes=0,  # rows are summed within a warp
        ),
        **threads,
        **interpret,
    )(*given.values())
    return dict(zip(outputs, results, strict=True))
