"""How a sequence is cut for the TPU kernels: tiles inside a span, spans inside the sequence."""

import dataclasses
import functools
import math

import jax.numpy as jnp

from rwkv_kernels.tpu.lanes import LANES, SUBLANES, Lanes, round_up

TILE = 64  # tokens among themselves; two heads' scores fill the 128 lanes
SMALLEST_TILE = 16  # the rows of a packed bfloat16 register
SPANS = (256, 128, 64)  # tokens in VMEM at once, the most that fit: B/16's 196 whole

# MiB of VMEM a core, by the name that JAX gives the device; as jax 0.10.2 has them (tpu_info.py).
_VMEM = {
    "TPU v4": 16, "TPU v4 lite": 16,
    "TPU v5 lite": 128, "TPU v5e": 128, "TPU v5": 64, "TPU v5p": 64,
    "TPU v6 lite": 128, "TPU v6e": 128, "TPU7x": 64,
}  # fmt: skip
_USUAL_VMEM = 64
_TOO_OLD = ("TPU v2", "TPU v3")
# What XLA gives a kernel that asks for none, and so costs nothing to ask for.
LEAST_LIMIT = 16 * 2**20


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
      vmem: bytes of VMEM that a kernel may take.
      samples: sequences a step of the grid takes; if more than one, arrays come as [T, B, C].
    """

    lanes: Lanes
    tokens: int
    span: int
    spans: int
    causal: bool
    vmem: int
    samples: int = 1

    @functools.cached_property
    def tiles(self) -> tuple[tuple[int, int], ...]:
        """(first token, rows) of each tile of a span."""
        L = self.lanes.tile
        return tuple((i, min(L, self.span - i)) for i in range(0, self.span, L))

    @property
    def stateful(self) -> bool:
        return self.causal or self.spans * len(self.tiles) > 1

    def fits(self, itemsize: int) -> bool:
        return self.vmem_bytes(itemsize) <= self.vmem

    @property
    def state_shape(self) -> tuple[int, int, int]:
        return len(self.lanes.state_blocks), LANES, LANES

    def vmem_bytes(self, itemsize: int) -> int:
        """About what the backward kernel, the largest, takes; itemsize of r, k, v."""
        C, state = self.lanes.channels, 4 * math.prod(self.state_shape)
        tokens = self.samples * self.span * C
        # r, k, v, g, dr, dk, dv and w, dw, each twice: copied while another is computed with.
        arrays = 2 * tokens * (7 * itemsize + 2 * 4)
        turned = 9 * 4 * tokens if self.samples > 1 else 0
        states = state * (2 * len(self.tiles) + 2) if self.stateful else 0
        borders = state * 4 if self.spans > 1 or self.causal else 0
        mask = 2 * state if self.stateful else 0
        return arrays + turned + states + borders + mask + self.working_bytes

    @property
    def working_bytes(self) -> int:
        """At most, of float32 arrays of a tile that are alive at once. The compiler needed 27 of
        them for bfloat16, and 60 to 100 for float32, whose operands it takes apart. Of small heads
        scores and operands take more, since each has its own.
        """
        lanes, short = self.lanes, self.lanes.operand_dtype == "bfloat16"
        arrays = (40 if short else 128) * lanes.tile * lanes.channels * 4
        scores = len(lanes.groups) * lanes.tile * LANES * 4
        blocks = sum(len(lanes.group_blocks(group)) for group in lanes.groups)
        operands = blocks * LANES * LANES * (2 if short else 4)
        return max(arrays, (12 if short else 36) * (scores + operands))


def vmem_of(device_kind: str) -> int:
    """Bytes of VMEM that a kernel may take on a TPU of that name: all but a sixteenth."""
    return _VMEM.get(device_kind, _USUAL_VMEM) * 2**20 // 16 * 15


def too_old(device_kind: str) -> tuple[str, ...]:
    """Why no kernel serves a TPU of that name; nothing if one may."""
    old = device_kind in _TOO_OLD
    return (f"{device_kind} multiplies no bfloat16 in a kernel",) if old else ()


def make_plan(T: int, H: int, N: int, dtype, *, causal: bool, device_kind: str) -> Plan:
    """How to cut a call; where even the shortest span does not fit into VMEM, that one.

    dtype: of r, k and v together; products of bfloat16 are taken in it, all others in float32.
    device_kind: the TPU's name; of one that nobody knows, 64 MiB are assumed.

    XLA keeps [B, T, C] as [T, B, C] in memory where T is no multiple of a register's rows, because
    that needs no padding, and would lay every array out anew for a kernel that reads samples one by
    one. Such a sequence, if it fits, is read as it lies.
    """
    tile = next(L for L in (SMALLEST_TILE, 2 * SMALLEST_TILE, TILE) if L >= T or L == TILE)
    lanes = Lanes(H, N, tile, "bfloat16" if dtype == jnp.bfloat16 else "float32")
    itemsize = jnp.dtype(dtype).itemsize
    span = round_up(T, SUBLANES)
    vmem = vmem_of(device_kind)
    # A TPU v4's compiler finds no room for them, however short they are.
    if not causal and T % SMALLEST_TILE and vmem > LEAST_LIMIT:
        plan = Plan(lanes, T, span, 1, causal, vmem, samples=SUBLANES)
        if SPANS[0] >= T and plan.fits(itemsize):
            return plan
    for longest in SPANS:
        spans = -(-T // longest)
        cut = span if spans == 1 else round_up(-(-T // spans), tile)
        plan = Plan(lanes, T, cut, -(-T // cut), causal, vmem)
        if plan.fits(itemsize):
            break
    return plan
