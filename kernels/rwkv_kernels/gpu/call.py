"""What the kernels' calls have in common: how tokens and states come and go."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from rwkv_kernels.gpu.grid import Grid
from rwkv_kernels.gpu.plan import TILE
from rwkv_kernels.gpu.tokens import Parts
from rwkv_kernels.gpu.warpgroup import Warpgroup
from rwkv_kernels.launch import launch


class Block:
    """What a warpgroup works on, and which others it has to wait for.

    Arrays of tokens in main memory are [B, T, H * N], states [flows, B, H, tiles + 1, N, N]: state
    i is that at the border to the left of tile i, the last that to the right of all. Flow 0 goes to
    the right, flow 1 to the left.

    Attributes:
      batch, head, part: where it is in the grid (`Grid.at`).
      first, width: its channels of the head.
      index: which of the block's warpgroups it is.
    """

    def __init__(
        self, place: Array, wg: Warpgroup, index: Array, grid: Grid,
        came: Any, state_came: Any, met: Any,
    ) -> None:  # fmt: skip
        self.plan, self.width, self.index = wg.plan, wg.width, index
        self._wg, self._place, self._grid = wg, place, grid
        self._came, self._state_came, self._met = came, state_came, met
        head, part = grid.at(place)
        self.batch, self.head = lax.div(head, grid.heads), lax.rem(head, grid.heads)
        blocks = wg.plan.head_size // wg.width  # that share a head's channels
        self.part, self.first = lax.div(part, blocks), lax.rem(part, blocks) * wg.width

    def again(self, *, anew: int) -> "Block":
        """The same, whose place is worked out again: it need not be kept until then. See `own`."""
        place = _opaque(self._place, anew)
        barriers = self._came, self._state_came, self._met
        return Block(place, self._wg, self.index, self._grid, *barriers)

    def at_head(self, head: Array) -> "Block":
        """The same, of other channels: as many as a head has."""
        other = copy.copy(self)
        other.head = head
        return other

    def by_rows(self) -> tuple["Block", Array]:
        """The block of a head, and which part of it, where the grid's parts are heads and its heads
        parts: blocks beside one another work on the same tokens, so rows of memory are read whole.
        """
        return self.at_head(self.part), self.head

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
    def heads(self) -> int:
        """How many heads the grid has, of a batch's each."""
        return self._grid.heads

    @property
    def channel(self) -> Array:
        """The first of the warpgroup's channels of all [H * N]."""
        return self.head * self.plan.head_size + self.first

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

    def tokens(self, array, tile: int | Array, to: Parts, *, whole: bool = False) -> list[tuple]:
        """Copies for `start`: a tile's 64 rows of an array of tokens, its last ones perhaps beyond
        the array's end.

        The copy engine fills up with zeros. whole: all of the head's channels.
        """
        rows = pl.ds(TILE * tile, TILE)
        first = self.head * self.plan.head_size if whole else self.channel
        return [
            (array.at[self.batch, rows, channels], part) for part, channels in _beside(to, first)
        ]

    def columns(self, array, tile: int | Array, to: Parts) -> list[tuple]:
        """As `tokens`, of an array whose channels no head owns: all of them."""
        rows = pl.ds(TILE * tile, TILE)
        return [(array.at[self.batch, rows, channels], part) for part, channels in _beside(to, 0)]

    def state(self, array, flow: int | Array, border: int | Array):
        """The warpgroup's columns of a flow's state at a border, [N, width]."""
        return array.at[flow, self.batch, self.head, border, :, self.of_head]

    def comes(self, flow: int | Array, *, against: bool = False) -> Array:
        """Whether a state comes to the tile by a flow, or with `against` the other way: none to the
        first on its way, or the last. To a causal WKV's one flow states come everywhere.
        """
        first = jnp.where((flow == 0) != against, 0, self.plan.tiles - 1)
        return jnp.int32(flow) == 0 if self.plan.causal else self.part != first

    def if_it_comes(
        self, flow: int | Array, add: Callable[[Any], Any], carry: Any, *, against: bool = False
    ) -> Any:
        """add(carry); or carry as it is, where no state `comes`.

        Where it always does, there is a branch all the same: the compiler works out nothing of it
        before, and has not the registers to.
        """
        return lax.cond(self.comes(flow, against=against), add, lambda carry: carry, carry)

    def start(
        self, copies: Sequence[tuple], stage: int | Array = 0, *, committed: bool = False
    ) -> None:
        """Begins to copy tokens (source, target in shared memory): all that come to a stage.

        committed: whether all threads have waited for each other since any of them has read what is
        overwritten (`Warpgroup.store`).
        """
        if not committed:
            plgpu.commit_smem()
        for source, target in copies:
            plgpu.copy_gmem_to_smem(source, target, self._came.at[self.index + stage])

    def wait(self, stage: int | Array = 0) -> None:
        """Until all have come that `start` began to copy."""
        plgpu.barrier_wait(self._came.at[self.index + stage])

    def start_state(self, copies: Sequence[tuple], which: int | Array) -> None:
        """Begins to copy a state to one of its rooms: its words (source, target)."""
        plgpu.commit_smem()  # all threads have read what is overwritten
        for source, target in copies:
            plgpu.copy_gmem_to_smem(source, target, self._of_room(which))

    def wait_for_state(self, which: int | Array) -> None:
        """Until it has come."""
        plgpu.barrier_wait(self._of_room(which))

    def _of_room(self, which: int | Array):
        return self._state_came.at[self._wg.warpgroups * which + self.index]

    def write(self, tile: int | Array, *copies: tuple[Parts, Any]) -> None:
        """Begins to copy tiles of tokens (source, array) to their places in main memory."""
        self._write(tile, copies, self.channel)

    def write_columns(self, tile: int | Array, *copies: tuple[Parts, Any]) -> None:
        """As `write`, to arrays whose channels no head owns."""
        self._write(tile, copies, 0)

    def _write(self, tile: int | Array, copies: Sequence[tuple[Parts, Any]], first) -> None:
        def write(rows: int) -> None:
            for source, array in copies:
                for part, channels in _beside(source, first):
                    target = array.at[self.batch, pl.ds(TILE * tile, rows), channels]
                    plgpu.copy_smem_to_gmem(part.at[pl.ds(0, rows)], target)

        plgpu.commit_smem()
        if self._wg.interpret is None:
            write(TILE)  # the copy engine leaves out what is beyond the array's end
        else:
            last = self.plan.tiles - 1
            pl.when(tile == last)(lambda: write(self.plan.last_rows))
            pl.when(tile < last)(lambda: write(TILE))

    def write_to(
        self, target, source: Parts, first: int | Array, *, committed: bool = False
    ) -> None:
        """Begins to copy parts that lie side by side to main memory, to its last axis from `first`
        on.

        committed: whether all threads have waited for each other since they were written.
        """
        if not committed:
            plgpu.commit_smem()
        for part, channels in _beside(source, first):
            plgpu.copy_smem_to_gmem(part, target.at[(slice(None),) * (part.ndim - 1) + (channels,)])

    def wait_for_writes(self, *, arrived: bool = False) -> None:
        """Until all that has been written to main memory has been read, or has arrived; threads
        wait for each other.
        """
        plgpu.wait_smem_to_gmem(0, wait_read_only=not arrived)


def _beside(parts: Parts, first: int | Array) -> Iterator[tuple[Any, Any]]:
    """Each part of a tile and its channels in main memory, from `first` on."""
    for part in parts:
        yield part, pl.ds(first, part.shape[-1])
        first = first + part.shape[-1]


def _at(memory, index: Array, anew: int | Array):
    """memory[index], by an index that the compiler cannot know before."""
    index = _opaque(index, anew)
    return jax.tree.map(lambda ref: ref.at[index], memory)


def _opaque(number: Array, anew: int | Array) -> Array:
    """The number: the compiler does not see through the barrier that what is added is 0."""
    zero = jnp.asarray(anew, jnp.int32)
    return number + (lax.optimization_barrier(zero) - zero)


def kernel_call(
    body: Callable[..., None],
    wg: Warpgroup,
    inputs: Mapping[str, Array | None],
    outputs: Mapping[str, jax.ShapeDtypeStruct],
    scratch: Mapping[str, Any],
    *,
    grid: Grid,
    copies: int,
    stages: int = 1,
    state_copies: int = 1,
    state_rooms: int = 2,
    sums: int = 0,
    name: str,
) -> dict[str, Array]:
    """Runs `body(block, **refs)` over the grid.

    Each of a block's warpgroups works on a part of a head. Inputs may be None, and are None in the
    body then. scratch: shared memory. copies: so many of tokens come in to each at once, in so many
    stages; state_copies: so many of a state; state_rooms: to so many rooms. sums: the most
    columns that are summed over a tile's rows at once.
    """
    given = {name: x for name, x in inputs.items() if x is not None}
    # JAX keeps `kernel`, which so keeps no arrays.
    names, nothing = (*given, *outputs), dict.fromkeys(inputs)
    many = wg.warpgroups > 1

    def kernel(*refs, came, state_came, met, scratch):
        index = lax.axis_index("warpgroup") if many else jnp.int32(0)
        place = lax.axis_index("block") * wg.warpgroups + index
        arrays = dict(zip(names, refs, strict=True))
        block = Block(place, wg, index, grid, came, state_came, met)
        body(block, **nothing | arrays | scratch)

    kernel.__name__ = name  # what profiles and dumps call it
    memory: Any = {
        "scratch": dict(scratch),
        "came": plgpu.Barrier(num_arrivals=copies, num_barriers=stages * wg.warpgroups),
        "state_came": plgpu.Barrier(
            num_arrivals=state_copies, num_barriers=state_rooms * wg.warpgroups
        ),
        "met": plgpu.Barrier(num_arrivals=wg.warpgroups) if many else None,
    }
    threads: dict[str, Any] = {}
    if many:
        threads = {"num_threads": wg.warpgroups, "thread_name": "warpgroup"}
    interpret: dict[str, Any] = {} if wg.interpret is None else {"interpret": wg.interpret}
    call = plgpu.kernel(
        kernel,
        out_type=tuple(outputs.values()),
        scratch_types=memory,
        grid=(grid.batches * grid.heads * grid.parts // wg.warpgroups,),
        grid_names=("block",),
        compiler_params=plgpu.CompilerParams(
            approx_math=True,
            lowering_semantics=plgpu.LoweringSemantics.Lane,
            unsafe_no_auto_barriers=True,  # see warpgroup.py
            # Rows are summed within a warp; of columns each of four warps has a float32.
            reduction_scratch_bytes=4 * 4 * sums,
        ),
        **threads,
        **interpret,
    )
    results = launch(call, *given.values())
    return dict(zip(outputs, results, strict=True))
