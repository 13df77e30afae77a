"""What the backward kernel has in shared memory, by name: of each of a block's warpgroups."""

from typing import Any, NamedTuple

from rwkv_kernels.gpu.warpgroup import Operand


class Held(NamedTuple):
    """A tile as products read it.

    r, k, v, g, log_d: [64, N]; dA: gradients of scores, A: scores, [64, 64].
    """

    r: Any
    k: Any
    v: Any
    g: Any
    log_d: Any
    dA: Any  # noqa: N815, as the formulas have it
    A: Any

    def operands(self) -> "Held":
        return Held(*map(Operand, self))


class Rooms(NamedTuple):
    """What a tile's tokens meet each other in.

    At a level: r c, k c, and a part of the gradient of log c, [64, N]; gradients of the level's
    scores, [64, 64]. Of a gentle tile: k Q, k P and r P, and gradients of scores to the right;
    r Q has a room of its own for 64 channels, [64, 64], and lies in that of A for others.
    """

    X: Any
    Y: Any
    E: Any
    D: Any
    Z: Any

    def operands(self) -> "Rooms":
        return Rooms(*map(Operand, self))


class Sides(NamedTuple):
    """What is worked with before and after: the gradient of u, float32 [N], and a part of a
    gradient, [64, N]; where there are states, what two flows ask, [2, N, N], and what is said at
    an edge, [N, N].
    """

    row: Any
    room: Any
    asked: Any = None
    said: Any = None
