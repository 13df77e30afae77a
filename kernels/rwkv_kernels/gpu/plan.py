"""How a call is cut for the Hopper kernels: tiles of 64 tokens, a warpgroup's product's rows."""

import dataclasses

TILE = 64  # wgmma multiplies 64 rows
SHARED_MEMORY = 227 * 1024  # bytes a block may take on a Hopper GPU


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static shape of a call; hashable, since a kernel is compiled for it.

    Attributes:
      tokens: T, at least 1.
      head_size: N; see `unservable` for which.
      causal: one direction, with the state handed in and out, or both, from nothing.
    """

    tokens: int
    head_size: int
    causal: bool

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

    @property
    def swizzle(self) -> int:
        """Bytes over which rows are permuted in shared memory, so that products read no bank twice.

        The widest that divides a row: 128 for N = 64, 32 for N = 80.
        """
        return next(width for width in (128, 64, 32) if 2 * self.head_size % width == 0)

    def shared_memory(self, kernel: str) -> int:
        """Bytes of shared memory that "states", "forward" or "backward" takes."""
        tile, state = 2 * TILE * self.head_size, 2 * self.head_size**2  # in bfloat16
        both = 1 if self.causal else 2
        # Tokens as they come, w in float32; log d in two parts; operands; sums in float32.
        tiles, states = {
            "states": (1 + 2 + 2 + 2, 2 + 1),  # the state in float32, and rounded
            "forward": (3 + 2 + 2 + 2, self.stateful),
            "backward": (3 + 2 + 4 + 3 * 2, 2 * both * self.stateful),
        }[kernel]
        return tiles * tile + states * state

    def unservable(self) -> tuple[str, ...]:
        """Every reason why the kernels cannot serve this shape; nothing if they can."""
        N = self.head_size
        if N % 16 or not TILE <= N <= 2 * TILE:
            # A bfloat16 product contracts 16 at a time, and gives 64 rows of a state at least.
            return (f"N = {N}, but it takes multiples of 16 from {TILE} to {2 * TILE}",)
        needed = self.shared_memory("backward")  # the most of the three
        if needed > SHARED_MEMORY:
            return (
                f"N = {N} with T = {self.tokens} needs {needed:,} bytes of shared memory, of "
                f"{SHARED_MEMORY:,}",
            )
        return ()
