"""Activations: what the forward pass leaves in memory for the backward pass."""

import functools
import re

from rwkv_jax.hlo.text import Array, Computation, Instruction, Program, leaves

_BACKWARD = "transpose("  # JAX writes so in the names of a reverse-mode pass

Buffer = tuple[str, int | None]  # an instruction, and which element of its tuple


def kept_bytes(program: Program) -> float:
    """The most that forward-made arrays, yet to be read by the backward pass, take at any moment.

    In main memory, on one device, by the program's own schedule. The program's arguments and what
    is written over them do not count. A loop's state is one memory before, in and after the loop.
    """

    @functools.cache
    def of(name: str) -> float:
        where = program.computations[name]
        live, most = _live_bytes(where), 0.0
        for moment, x in enumerate(where.instructions):
            inner = x.called("body", "to_apply") if x.opcode in ("while", "call") else []
            most = max(most, live[moment] + max((of(name) for name in inner), default=0.0))
        return most

    return of(program.entry)


def _live_bytes(where: Computation) -> list[float]:
    """Bytes of such arrays of a computation at each of its instructions."""
    buffers = _buffers(where)
    made: dict[Buffer, int] = {}
    size: dict[Buffer, float] = {}
    last_read: dict[Buffer, int] = {}
    for moment, x in enumerate(where.instructions):
        own = not _is_view(x)
        for buffer, array in zip(buffers[x.name], x.arrays, strict=True):
            if own and buffer not in made and x.opcode != "parameter":
                backward = _BACKWARD in x.op_name
                made[buffer] = moment
                size[buffer] = 0.0 if backward else array.main_memory_bytes
        if _BACKWARD in x.op_name and not _is_view(x):
            for operand in where.operands(x):
                for buffer in buffers[operand.name]:
                    last_read[buffer] = moment
    changes = [0.0] * (len(where.instructions) + 1)
    for buffer, moment in last_read.items():
        if buffer in made and made[buffer] < moment:
            changes[made[buffer]] += size[buffer]
            changes[moment + 1] -= size[buffer]
    live, level = [], 0.0
    for change in changes:
        level += change
        live.append(level)
    return live


def _is_view(x: Instruction) -> bool:
    return x.opcode in ("tuple", "get-tuple-element", "bitcast", "copy-done", "opt-barrier")


def _buffers(where: Computation) -> dict[str, list[Buffer]]:
    """The memory behind each array of each instruction's result."""
    buffers: dict[str, list[Buffer]] = {}
    for x in where.instructions:
        operands = where.operands(x)
        inherited = [buffer for operand in operands for buffer in buffers[operand.name]]
        match x.opcode:
            case "tuple" | "bitcast" | "opt-barrier" | "while":
                found = inherited
            case "get-tuple-element":
                found = _element(x, operands[0], inherited)
            case _:
                found = [(x.name, i) for i in range(len(x.arrays))]
                for mine, theirs in _aliases(x):
                    if theirs < len(operands) and mine < len(found):
                        first = buffers[operands[theirs].name]
                        found[mine] = first[0] if len(first) == 1 else found[mine]
        if len(found) != len(x.arrays):
            found = [(x.name, i) for i in range(len(x.arrays))]
        buffers[x.name] = found
    return buffers


def _element(x: Instruction, operand: Instruction, inherited: list[Buffer]) -> list[Buffer]:
    index = re.search(r"\bindex=(\d+)", x.attributes)
    if index is None or isinstance(operand.shape, Array):
        return []
    before = 0
    for i, part in enumerate(operand.shape):
        n = len(leaves(part))
        if i == int(index[1]):
            return inherited[before : before + n]
        before += n
    return []


def _aliases(x: Instruction) -> list[tuple[int, int]]:
    """Which result takes which operand's memory."""
    if x.opcode == "dynamic-update-slice":
        return [(0, 0)]
    found = re.search(r"output_to_operand_aliasing=\{(.*?)\}, \w", x.attributes)
    if not found:
        return []
    pairs = re.findall(r"\{(\d*)\}: \((\d+), \{\}", found[1])
    return [(int(mine or 0), int(theirs)) for mine, theirs in pairs]
