"""How often a loop runs: XLA's own word for it, or the arithmetic of its counter."""

import math
import re

from rwkv_jax.hlo.text import Computation, Instruction, Program

_SAME = {"copy", "bitcast", "convert", "copy-done", "copy-start", "reshape"}


def trip_count(program: Program, where: Computation, loop: Instruction) -> int | None:
    """How often the body of a `while` of the computation `where` runs; None if that is not fixed.

    A counter is understood where the condition compares an element of the loop's state with a
    constant, and the body adds a constant to it. (A TPU's compiler leaves out the count that a
    CPU's and a GPU's write down.)
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    (condition,), (body,) = loop.called("condition"), loop.called("body")
    start = _state(where, loop)
    compared = _comparison(program, program.computations[condition])
    if compared is None or start is None:
        return None
    direction, left, right = compared
    ends = [_value(program.computations[condition], x, start) for x in (left, right)]
    index = [_element(program.computations[condition], x) for x in (left, right)]
    runs = program.computations[body]
    step = [0 if i is None else _step(program, runs, i, start) for i in index]
    if step[1]:  # constant < counter: turn it round
        direction = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}.get(direction, direction)
        ends, step = ends[::-1], step[::-1]
    (first, limit), by = ends, step[0]
    if first is None or limit is None or not by or step[1] != 0:
        return None
    distance = limit - first
    if direction in ("LE", "GE"):
        distance += 1 if direction == "LE" else -1
    up = direction in ("LT", "LE") or (direction == "NE" and distance > 0)
    if (by > 0) != up:
        return None
    return max(0, math.ceil(distance / by))


def _state(where: Computation, loop: Instruction) -> list[int | None] | None:
    """The values of a loop's state before its first run, where they are constants."""
    state = where.by_name[loop.operands[0]]
    while state.opcode in _SAME:
        state = where.by_name[state.operands[0]]
    if state.opcode != "tuple":
        return None
    return [_value(where, where.by_name[name], None) for name in state.operands]


def _value(where: Computation, x: Instruction, state: list[int | None] | None) -> int | None:
    """An integer that is known when the program is compiled."""
    while x.opcode in _SAME:
        x = where.by_name[x.operands[0]]
    if x.opcode == "constant" and re.fullmatch(r"-?\d+", x.literal):
        return int(x.literal)
    i = _element(where, x)
    return state[i] if state is not None and i is not None else None


def _element(where: Computation, x: Instruction) -> int | None:
    """i where `x` is the i-th element of a computation's one parameter."""
    while x.opcode in _SAME:
        x = where.by_name[x.operands[0]]
    index = re.search(r"\bindex=(\d+)", x.attributes)
    if x.opcode != "get-tuple-element" or index is None:
        return None
    return int(index[1]) if where.by_name[x.operands[0]].opcode == "parameter" else None


def _comparison(
    program: Program, condition: Computation
) -> tuple[str, Instruction, Instruction] | None:
    """Direction and both sides, as instructions of the condition, also out of a fusion."""
    root = condition.root
    if root.opcode == "fusion":
        inner = program.computations[root.called("calls")[0]]
        if inner.root.opcode != "compare":
            return None
        sides = []
        for x in inner.operands(inner.root):
            if x.opcode != "parameter":
                return None
            sides.append(condition.by_name[root.operands[int(x.literal)]])
        comparison = inner.root
    elif root.opcode == "compare":
        comparison, sides = root, condition.operands(root)
    else:
        return None
    direction = re.search(r"direction=(\w+)", comparison.attributes)
    return (direction[1], sides[0], sides[1]) if direction and len(sides) == 2 else None


def _step(program: Program, body: Computation, i: int, start: list[int | None]) -> int | None:
    """What a run of the body adds to element i of its state."""
    if body.root.opcode != "tuple":
        return None
    x = body.by_name[body.root.operands[i]]
    while x.opcode in _SAME:
        x = body.by_name[x.operands[0]]
    if _element(body, x) == i:
        return 0
    sides = body.operands(x)
    if x.opcode == "fusion":
        inner = program.computations[x.called("calls")[0]]
        if inner.root.opcode not in ("add", "subtract"):
            return None
        operation = inner.root.opcode
        outer = []
        for side in inner.operands(inner.root):
            if side.opcode == "parameter":
                outer.append((body, body.by_name[x.operands[int(side.literal)]]))
            else:
                outer.append((inner, side))
    elif x.opcode in ("add", "subtract"):
        operation, outer = x.opcode, [(body, side) for side in sides]
    else:
        return None
    by = None
    for where, side in outer:
        j = _element(where, side) if where is body else None
        if j == i:
            continue
        unchanged = j is not None and _step(program, body, j, start) == 0
        value = start[j] if j is not None and unchanged else _value(where, side, None)
        if value is None:
            return None
        by = value if operation == "add" else -value
    return by
