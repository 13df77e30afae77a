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
    def levels(self) -> int:
        """How many levels a tile has: m = 1, 2, 4, ..."""
        return (min(self.tokens, TILE) - 1).bit_length()

    @property
    def stateful(self) -> bool:
        """Whether states come to a tile from beyond it."""
        return self.causal or self.tiles > 1

    @property
    def state_blocks(self) -> tuple[int, ...]:
        """First rows of the 64 that a product gives at a time of a state [N, N].

        The last block ends with the state: for N = 80 the two overlap, and agree where they do.
        """
        return (0,) if self.head_size == TILE else (0, self.head_size - TILE)

    def widths(self, kernel: str) -> tuple[int, ...]:
        """Of each warpgroup of a block: how many of a head's channels (of the key) it takes.

        In sixteens, which a bfloat16 product contracts at a time. A block of "states" is one
        warpgroup; several blocks take a head.
        """
        if kernel == "states":
            return (self.head_size // self.tiling.sweep_blocks,)
        warpgroups = getattr(self.tiling, f"{kernel}_warpgroups")
        sixteens = self.head_size // 16
        return tuple(
            16 * (sixteens // warpgroups + (i < sixteens % warpgroups)) for i in range(warpgroups)
        )

    def shared_memory(self, kernel: str) -> int:
        """Bytes of shared memory that a block of a kernel takes."""
        N, widths, stages = self.head_size, self.widths(kernel), self.tiling.sweep_stages
        state = 2 * N * self.stateful  # bytes of one of a state's columns, as an operand
        # Bytes of each of a block's channels: r, k, v, g as they come, w, log d in two parts, and
        # what products read; sums of gradients.
        channel = {
            "states": TILE * ((2 + 4) * stages + 4 + 2) + (4 + 2) * N,
            "forward": TILE * (3 * 2 + 4 + 4 + 2) + state,
            "backward": TILE * (4 * 2 + 4 + 4 + 2 * 2 + 2 * 4) + 2 * state,
        }[kernel]
        # What warpgroups share, and what each has of scores: 64 x N and 64 x 64 in bfloat16.
        tiles, squares = {
            "states": (1 + stages, 0),
            "forward": (1, 0),
            "backward": (2, 3 + len(widths)),
        }[kernel]
        return sum(widths) * channel + 2 * TILE * (tiles * N + squares * TILE)

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
