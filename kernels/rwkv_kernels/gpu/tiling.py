"""What may be chosen about the Hopper kernels, and what is chosen with nothing known of a device.

Every choice gives the same numbers but for the order of sums; which is quickest is the device's to
say. `rwkv_kernels.tune` asks it, and `gpu/tuned.py` keeps the answers.
"""

import dataclasses

_ENOUGH = 128  # blocks: an H100 or H200 has 132 multiprocessors


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Tile choices of a call, checked when made.

    Attributes:
      sweep_blocks: among how many blocks the sweep for states shares a head's channels (of the
        key); divides N / 16.
      sweep_segments: how many parts of a sequence are swept side by side. More than one are swept
        twice, once for what each adds, and once from what the ones before it have left. Divides
        the number of tiles.
      sweep_stages: tiles of tokens in shared memory at once, 1 or 2: with 2, one is fetched while
        the other is worked on.
    """

    sweep_blocks: int = 1
    sweep_segments: int = 1
    sweep_stages: int = 2

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{field.name} must be a positive integer, got {value!r}.")
        if self.sweep_stages > 2:
            raise ValueError(f"sweep_stages must be 1 or 2, got {self.sweep_stages}.")

    def misfits(self, head_size: int, tiles: int) -> tuple[str, ...]:
        """Every reason why a call of that head size and number of tiles cannot be cut so."""
        reasons: tuple[str, ...] = ()
        if head_size // 16 % self.sweep_blocks:
            reasons += (
                f"sweep_blocks = {self.sweep_blocks} does not divide N / 16 = {head_size // 16}",
            )
        if tiles % self.sweep_segments:
            reasons += (
                f"sweep_segments = {self.sweep_segments} does not divide the {tiles} tiles",
            )
        return reasons


def sweeps(tiling: Tiling, head_size: int, tiles: int) -> list[Tiling]:
    """All ways to cut the sweep of so many tiles, `tiling` first."""
    every = [
        Tiling(blocks, segments, stages)
        for blocks in (1, head_size // 16)
        for segments in range(1, min(tiles, 32) + 1)
        for stages in (1, 2)
    ]
    fit = [x for x in every if not x.misfits(head_size, tiles)]
    return [tiling, *(x for x in fit if x != tiling)]


def default(heads: int, tiles: int) -> Tiling:
    """With nothing known of a device but that it has as many multiprocessors as an H200.

    heads: B * H, each swept both ways. Where there are not enough of them, sequences are cut into
    segments, of four tiles at least, until there are. The quickest cuts on an H100 were by segments
    alone, not by channels.
    """
    if 2 * heads >= _ENOUGH:  # others fill the time in which a block waits for its tile
        return Tiling(sweep_stages=1)
    segments = [n for n in range(1, tiles + 1) if tiles % n == 0 and (n == 1 or tiles >= 4 * n)]
    enough = [n for n in segments if n * 2 * heads >= _ENOUGH]
    return Tiling(sweep_segments=min(enough, default=max(segments)))
