"""XLA's text form of a compiled program, taken apart: computations, instructions, shapes.

Reads what `jax.stages.Compiled.as_text()` gives, for TPUs, GPUs and CPUs. Only what the accounting
needs is understood; everything else of an instruction stays text (`Instruction.attributes`).
"""

import dataclasses
import functools
import math
import re
from typing import TypeAlias

_BITS = {"pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "token": 0, "opaque": 0}


@dataclasses.dataclass(frozen=True)
class Array:
    """The type of one array.

    Attributes:
        dtype: XLA's name, such as "bf16".
        dimensions: as in the program, not as in memory.
        minor_to_major: the order of the dimensions in memory, the fastest first.
        tile: a TPU lays out its fastest dimensions in whole tiles of this size; () where not.
        space: where it lives: 0 is the device's main memory, 1 a TPU's fast memory (VMEM).
    """

    dtype: str
    dimensions: tuple[int, ...]
    minor_to_major: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.dimensions)

    @property
    def bytes(self) -> int:
        """As it lies in memory, its last tiles filled up."""
        dimensions = list(self.dimensions)
        order = self.minor_to_major or tuple(reversed(range(len(dimensions))))
        for axis, tile in zip(order, reversed(self.tile), strict=False):
            dimensions[axis] = -(-dimensions[axis] // tile) * tile
        return math.prod(dimensions) * self._bits // 8

    @property
    def unpadded_bytes(self) -> int:
        """Of its elements alone."""
        return self.size * self._bits // 8

    @property
    def _bits(self) -> int:
        found = re.match(r"[a-z]+(\d+)", self.dtype)
        return _BITS[self.dtype] if self.dtype in _BITS else int(found[1]) if found else 8

    @property
    def main_memory_bytes(self) -> int:
        """`bytes`, or 0 for an array that lives elsewhere."""
        return self.bytes if self.space == 0 else 0


Shape: TypeAlias = "Array | tuple[Shape, ...]"


def leaves(shape: Shape) -> list[Array]:
    """All arrays of a shape, in order."""
    return [shape] if isinstance(shape, Array) else [x for part in shape for x in leaves(part)]


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`%name = shape opcode(operands), attributes`.

    Attributes:
        literal: what stands between the parentheses: of a constant its value.
    """

    name: str
    shape: Shape
    opcode: str
    operands: tuple[str, ...]
    literal: str
    attributes: str
    root: bool

    @property
    def arrays(self) -> list[Array]:
        return leaves(self.shape)

    @property
    def results(self) -> list[Array]:
        """`arrays`, but for the bytes that a cuBLAS call is given to work in: hardly any of them is
        touched.
        """
        room = "s8" if 'custom_call_target="__cublas$' in self.attributes else None
        return [array for array in self.arrays if array.dtype != room]

    def called(self, *attributes: str) -> list[str]:
        """The computations that these attributes name, such as `calls=%fused` or `body=%b`."""
        found = []
        for attribute in attributes:
            pattern = rf"\b{attribute}=(?:\{{([^}}]*)\}}|%?([\w.\-]+))"
            for many, one in re.findall(pattern, self.attributes):
                found += re.findall(r"%?([\w.\-]+)", many) if many else [one]
        return found

    @property
    def op_name(self) -> str:
        """The place in the JAX program that it comes from: "jit(step)/transpose(jvp())/mul"."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions in the order in which they run, where the program is scheduled."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {x.name: x for x in self.instructions}

    @functools.cached_property
    def root(self) -> Instruction:
        return next((x for x in self.instructions if x.root), self.instructions[-1])

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        return {int(x.literal): x for x in self.instructions if x.opcode == "parameter"}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Who reads an instruction's result."""
        users: dict[str, list[Instruction]] = {x.name: [] for x in self.instructions}
        for x in self.instructions:
            for operand in dict.fromkeys(x.operands):
                users.get(operand, []).append(x)
        return users

    def operands(self, instruction: Instruction) -> list[Instruction]:
        return [self.by_name[name] for name in instruction.operands if name in self.by_name]


@dataclasses.dataclass(frozen=True)
class Program:
    """Attributes:
    computations: by name.
    entry: the name of the one that runs.
    devices: how many run it together.
    """

    computations: dict[str, Computation]
    entry: str
    devices: int


def parse(text: str) -> Program:
    """The program of an XLA text.

    Raises:
        ValueError: there is no ENTRY computation in it.
    """
    computations: dict[str, Computation] = {}
    instructions: list[Instruction] = []
    entry, name = "", ""
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{\s*$", line)
        if header and not line.startswith("HloModule"):
            name, instructions = header[2], []
            entry = name if header[1] else entry
        elif line.startswith("}") and name:
            computations[name] = Computation(name, tuple(instructions))
            name = ""
        elif name and (parsed := _instruction(line)):
            instructions.append(parsed)
    if not entry:
        raise ValueError("no ENTRY computation: this is not the text of an XLA program")
    found = {
        key: int(value)
        for key, value in re.findall(r"num_(partitions|replicas)=(\d+)", text[: text.find("\n")])
    }
    return Program(
        computations, entry, max(found.get("partitions", 1), 1) * max(found.get("replicas", 1), 1)
    )


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not found:
        return None
    shape, rest = _split_shape(line[found.end() :])
    opcode, _, rest = rest.partition("(")
    end = _closing(rest, 1)
    inside, attributes = rest[: end - 1], rest[end:]
    operands = () if opcode == "constant" else tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(
        found[2], _shape(shape), opcode.strip(), operands, inside, attributes, bool(found[1])
    )


def _closing(text: str, depth: int) -> int:
    """Where `depth` open brackets of any kind are closed."""
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return i + 1
    return len(text)


def _split_shape(text: str) -> tuple[str, str]:
    if text.startswith("("):
        end = _closing(text[1:], 1) + 1
        return text[:end], text[end:].lstrip()
    shape, _, rest = text.partition(" ")
    return shape, rest


def _shape(text: str) -> Shape:
    text = re.sub(r"/\*.*?\*/", "", text).strip()
    if text.startswith("("):
        return tuple(_shape(part) for part in _split_tuple(text[1:-1]))
    found = re.match(r"(\w+)\[([^\]]*)\](?:\{([^}]*)\})?", text)
    if not found:
        return Array("opaque", ())
    dtype, dimensions, layout = found.groups()
    order, _, more = (layout or "").partition(":")
    tile = re.search(r"T\(([\d,]*)\)", more)
    space = re.search(r"S\((\d+)\)", more)
    return Array(
        dtype,
        _numbers(dimensions),
        _numbers(order),
        _numbers(tile[1]) if tile else (),
        int(space[1]) if space else 0,
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(x) for x in re.findall(r"\d+", text))


def _split_tuple(text: str) -> list[str]:
    """Splits at the commas that stand inside no bracket."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]] if text[start:].strip() else parts
