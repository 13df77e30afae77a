"""How a call is cut for the Hopper kernels: tiles of 64 tokens, a warpgroup's product's rows."""

import dataclasses

from rwkv_kernels.gpu.tiling import Tiling

TILE = 64  # wgmma multiplies 64 rows
SHARED_MEMORY = 227 * 1024  # bytes a block may take on a Hopper GPU
KERNELS = ("states", "forward", "backward")
# Their threads have 128 registers each, and 255.
_MOST_WARPGROUPS = {"forward": 4, "backward": 2}


def parts(columns: int, itemsize: int) -> tuple[int, ...]:
    """How many channels of tokens as they come lie together: an odd number of 32 bytes, or all of
    sixteen.

    So the same channels of four tokens are in different banks of shared memory, where whole rows of
    64 or 128 channels would all begin in the same one. 32 bytes are the least that main memory
    gives or takes: with half of them in another part, sweeps took a tenth longer (H100).
    """
    unit = 32 // itemsize
    if columns == 16 or (columns // unit) % 2:
        return (columns,)
    half = unit * (columns // (2 * unit) | 1)
    return half, columns - half


def _room(count: int) -> int:
    """Bytes that an array of so many takes: Mosaic begins each at a multiple of 1,024."""
    return -(-count // 1024) * 1024


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static shape of a call; hashable, since a kernel is compiled for it.

    Attributes:
      tokens: T, at least 1.
      head_size: N; see `unservable` for which.
      causal: one direction, with the state handed in and out, or both, from nothing.
      tiling: what may be chosen about it.
      words: of sixteen bits in which products see a number: 1 for bfloat16, 2 for float32.
    """

    tokens: int
    head_size: int
    causal: bool
    tiling: Tiling
    words: int = 1

    @property
    def tiles(self) -> int:
        return -(-self.tokens // TILE)

    @property
    def levels(self) -> int:
        """Of a full tile, or of the only one: how often its tokens can be halved."""
        return (min(self.tokens, TILE) - 1).bit_length()

    @property
    def last_rows(self) -> int:
        """Tokens of the last tile; all others are full."""
        return self.tokens - TILE * (self.tiles - 1)

    def whole(self, kernel: str) -> bool:
        """Whether a kernel's block works on all of a sequence's tiles, a warpgroup each, which read
        each other's shared memory. In two words there is room for one.
        """
        most = _MOST_WARPGROUPS[kernel] if self.words == 1 else 1
        fits = self.tiles * self._of_a_tile(kernel) <= SHARED_MEMORY
        return not self.causal and self.tiles <= most and fits

    def warpgroups(self, kernel: str) -> int:
        """Of a block; each works on a tile."""
        return self.tiles if kernel != "states" and self.whole(kernel) else 1

    def reads_states(self, kernel: str) -> bool:
        """Whether states come to a kernel's tiles from beyond its block."""
        return not self.whole(kernel)

    @property
    def stateful(self) -> bool:
        """Whether there are states at all."""
        return any(map(self.reads_states, _MOST_WARPGROUPS))

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
        state = _room(2 * self.head_size**2) if self.reads_states(kernel) else 0
        return self.warpgroups(kernel) * self._of_a_tile(kernel, state)

    def _of_a_sweep(self) -> int:
        N, stages, words = self.head_size, self.tiling.sweep_stages, self.words
        width = N // self.tiling.sweep_blocks
        tile = 2 * TILE * N
        came = words * (tile + 2 * TILE * width) + 4 * TILE * width
        rounded = sum(_room(2 * N * part) for part in parts(width, 2))
        return stages * came + words * (tile + 4 * TILE * width + rounded)

    def _of_a_tile(self, kernel: str, state: int = 0) -> int:
        """state: the bytes of one, where there are states."""
        N = self.head_size
        tile, square = 2 * TILE * N, 2 * TILE * TILE  # bytes of operands
        if self.words == 2:
            tile, square, state = (self.words * x for x in (tile, square, state))
            if kernel == "forward":
                return 4 * tile + max(tile, state)
            return 5 * tile + 3 * square + max(2 * tile, state) + _room(4 * N)
        if kernel == "forward":
            second = 0 if self.causal else state
            return 4 * tile + max(tile, second) + state
        # r, k, v, g, log d and scores; what is worked in, or two states asked with what is beside
        # them; gradients of scores, or a state said (`backward.backward`).
        work = max(3 * tile + square, _room(4 * N) + tile + 2 * state)
        return 5 * tile + square + work + max(2 * square, state)

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
