"""How a sequence is cut for the TPU kernels: tiles inside a span, spans inside the sequence."""

import dataclasses
import functools

from rwkv_kernels.tpu.lanes import LANES, SUBLANES, Lanes, round_up

TILE = 64  # tokens among themselves; two heads' scores fill the 128 lanes
SMALLEST_TILE = 16  # the rows of a packed bfloat16 register
SPAN = 256  # tokens resident in VMEM at once: B/16's 196 whole


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static shape of a call.

    A span is what one step of the grid holds in VMEM; its tiles are worked off one after the other,
    with states between them. A sequence of one span meets no state in main memory.

    Attributes:
      lanes: where heads lie.
      tokens: T.
      span: tokens of a span; a multiple of 8.
      spans: how many; span * spans >= T, and what lies beyond T is masked.
      causal: one direction, with the state handed in and out, or both, from nothing.
    """

    lanes: Lanes
    tokens: int
    span: int
    spans: int
    causal: bool

    @functools.cached_property
    def tiles(self) -> tuple[tuple[int, int], ...]:
        """(first token, rows) of each tile of a span."""
        L = self.lanes.tile
        return tuple((i, min(L, self.span - i)) for i in range(0, self.span, L))

    @property
    def stateful(self) -> bool:
        return self.causal or self.spans * len(self.tiles) > 1

    @property
    def state_shape(self) -> tuple[int, int, int]:
        return len(self.lanes.state_blocks), LANES, LANES


def make_plan(T: int, H: int, N: int, operand_dtype: str, *, causal: bool) -> Plan:
    tile = next(L for L in (SMALLEST_TILE, 2 * SMALLEST_TILE, TILE) if L >= T or L == TILE)
    spans = -(-T // SPAN)
    span = round_up(T, SUBLANES) if spans == 1 else round_up(-(-T // spans), tile)
    spans = -(-T // span)
    return Plan(Lanes(H, N, tile, operand_dtype), T, span, spans, causal)
