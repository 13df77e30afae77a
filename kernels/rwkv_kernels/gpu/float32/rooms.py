"""What the backward kernel has in shared memory, and all else that its steps have at hand."""

from typing import NamedTuple

from jaxtyping import Array, Float16

from rwkv_kernels.gpu import beside, tokens, words
from rwkv_kernels.gpu.call import Block
from rwkv_kernels.gpu.float32 import levels
from rwkv_kernels.gpu.warpgroup import Warpgroup

MET, OF_V, STATE, HALVES = range(4)  # what lies in turn in `Rooms.work`


class Rooms(NamedTuple):
    """Shared memory of a tile. What lies in braces lies there in turn."""

    r: tokens.Parts  # and what of its gradient is found
    k: tokens.Parts
    v: tuple  # {as they came, words}
    g: tuple
    w: tuple  # {as they came and what is found, words of log d}
    A: tuple  # {words [64, 64], the gradient of log d of the first half of the channels}
    dA: tuple  # noqa: N815, as the formulas have it
    D: tuple  # {words of a level's dA, words of the gradient of log c: half of the channels}
    work: tuple  # {(r c, k c), gradients of v, a state, of two states the columns of each half}
    row: tuple  # the gradient of u, float32 [N]


class Work(NamedTuple):
    """What all steps of the kernel have at hand."""

    wg: Warpgroup
    block: Block
    rooms: Rooms
    meetings: Array
    said: tuple
    asked: tuple

    def at(self, anew: int | Array) -> Rooms:
        """The block's own rooms, in a part of the kernel."""
        return Rooms(*self.block.own(tuple(self.rooms), anew=anew))

    def tile(self, anew: int | Array) -> levels.Tile:
        rooms = self.at(anew)
        return levels.Tile(rooms.r, rooms.k, words.operands(rooms.w[1]))

    def own(self, anew: int | Array) -> Float16[Array, "64 16"]:
        return self.wg.load_raw(self.block.only(self.meetings, anew=anew))

    def met(self, anew: int | Array) -> Float16[Array, "64 64"]:
        return beside.meetings(self.wg, self.own(anew))
