"""How a call is cut for the Hopper kernels: tiles of 64 tokens, a warpgroup's product's rows."""

import dataclasses

from rwkv_kernels.gpu.tiling import Tiling

TILE = 64  # wgmma multiplies 64 rows
SHARED_MEMORY = 227 * 1024  # bytes a block may take on a Hopper GPU
KERNELS = ("states", "forward", "backward")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static shape of a call; hashable, since a kernel is compiled for it.

    Attributes:
      tokens: T, at least 1.
      head_size: N; see `unservable` for which.
      causal: one direction, with the state handed in and out, or both, from nothing.
      tiling: what may be chosen about it.
    """

    tokens: int
    head_size: int
    causal: bool
    tiling: Tiling

    @property
    def tiles(self) -> int:
        return -(-self.tokens // TILE)

    @property
    def last_rows(self) -> int:
        """Tokens of the last tile; all others are full."""
        return self.tokens - TILE * (self.tiles - 1)

    @property
    def paired(self) -> bool:
        """Whether a block works on both of a sequence's tiles, a warpgroup each, which read each
        other's shared memory.
        """
        fits = 2 * max(map(self._of_a_tile, KERNELS[1:])) <= SHARED_MEMORY
        return self.tiles == 2 and not self.causal and fits

    @property
    def stateful(self) -> bool:
        """Whether states come to a tile from beyond it."""
        return self.causal or (self.tiles > 1 and not self.paired)

    @property
    def state_blocks(self) -> tuple[int, ...]:
        """First rows of the 64 that a product gives at a time of a state [N, N].

        The last block ends with the state: for N = 80 the two overlap, and agree where they do.
        """
        return (0,) if self.head_size == TILE else (0, self.head_size - TILE)

    def shared_memory(self, kernel: str) -> int:
        """Bytes of shared memory that a block of a kernel takes, but for barriers."""
        if kernel == "states":
            return self._of_a_sweep() if self.stateful else 0
        if self.stateful:
            return self._of_a_tile(kernel, state=2 * self.head_size**2)
        return (1 + self.paired) * self._of_a_tile(kernel)

    def _of_a_sweep(self) -> int:
        N, stages = self.head_size, self.tiling.sweep_stages
        width = N // self.tiling.sweep_blocks
        tile = 2 * TILE * N
        return stages * (tile + 6 * TILE * width) + tile + 4 * TILE * width + 2 * N * width

    def _of_a_tile(self, kernel: str, state: int = 0) -> int:
        """state: the bytes of one, where there are states."""
        tile, square = 2 * TILE * self.head_size, 2 * TILE * TILE  # bytes of operands
        if kernel == "forward":
            return 2 * tile + max(2 * tile, state) + 3 * tile
        held = max(6 * tile, 5 * tile + 2 * square)
        return held + max(3 * tile + square, 2 * tile + state) + square

    def unservable(self) -> tuple[str, ...]:
        """Every reason why the kernels cannot serve this shape; nothing if they can."""
        N = self.head_size
        if N % 16 or not TILE <= N <= 2 * TILE:
            # A bfloat16 product contracts 16 at a time, and gives 64 rows of a state at least.
            return (f"N = {N}, but it takes multiples of 16 from {TILE} to {2 * TILE}",)
        misfits = self.tiling.misfits(N, self.tiles)
        needed = max(self.shared_memory(kernel) for kernel in KERNELS) if not misfits else 0
        if needed > SHARED_MEMORY:
            misfits += (
                f"N = {N} with T = {self.tokens} needs {needed:,} bytes of shared memory, of "
                f"{SHARED_MEMORY:,}",
            )
        return misfits
