"""What may be chosen about the Hopper kernels, and what is chosen with nothing known of a device.

Every choice gives the same numbers but for the order of sums; which is quickest is the device's to
say. `rwkv_kernels.tune` asks it, and `gpu/tuned.py` keeps the answers.
"""

import dataclasses

_MULTIPROCESSORS = 132  # of an H100 or H200


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Tile choices of a call, checked when made.

    Attributes:
      forward_warpgroups: among how many warpgroups of a block the forward kernel shares a head's
        channels, 1 or 2. Two halve what each waits for, and add their outputs up in the end.
      backward_warpgroups: the same of the backward kernel.
      sweep_blocks: among how many blocks the sweep for states shares a head's channels (of the
        key); divides N / 16.
      sweep_segments: how many parts of a sequence are swept side by side. More than one are swept
        twice, once for what each adds, and once from what the ones before it have left. Divides
        the number of tiles.
      sweep_stages: tiles of tokens in shared memory at once, 1 or 2: with 2, one is fetched while
        the other is worked on.
    """

    forward_warpgroups: int = 1
    backward_warpgroups: int = 2
    sweep_blocks: int = 1
    sweep_segments: int = 1
    sweep_stages: int = 2

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{field.name} must be a positive integer, got {value!r}.")
        for name in ("forward_warpgroups", "backward_warpgroups", "sweep_stages"):
            if getattr(self, name) > 2:
                raise ValueError(f"{name} must be 1 or 2, got {getattr(self, name)}.")

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


def families(tiling: Tiling, head_size: int, tiles: int) -> dict[str, list[Tiling]]:
    """Choices beside `tiling`, itself the first: for each kernel those that differ for it alone."""

    def vary(**fields) -> Tiling:
        return dataclasses.replace(tiling, **fields)

    found = {
        "forward": [tiling, vary(forward_warpgroups=3 - tiling.forward_warpgroups)],
        "backward": [tiling, vary(backward_warpgroups=3 - tiling.backward_warpgroups)],
    }
    if tiles > 1:
        sweeps = [
            vary(sweep_blocks=blocks, sweep_segments=segments, sweep_stages=stages)
            for blocks in (1, head_size // 16)
            for segments in range(1, min(tiles, 32) + 1)
            for stages in (1, 2)
        ]
        fit = [x for x in sweeps if not x.misfits(head_size, tiles)]
        found["states"] = [tiling, *(x for x in fit if x != tiling)]
    return found


def default(heads: int, head_size: int, tiles: int) -> Tiling:
    """With nothing known of a device but that it has as many multiprocessors as an H200.

    heads: B * H. A sweep of fewer heads than that is cut up, first by channels, which costs little,
    then by segments until all multiprocessors have a block, of four tiles at least.
    """
    if heads >= _MULTIPROCESSORS:
        return Tiling()
    blocks = max(head_size // 16, 1)
    segments = [n for n in range(1, tiles + 1) if tiles % n == 0 and (n == 1 or tiles >= 4 * n)]
    enough = [n for n in segments if n * blocks * heads >= _MULTIPROCESSORS]
    return Tiling(sweep_blocks=blocks, sweep_segments=min(enough, default=max(segments)))
