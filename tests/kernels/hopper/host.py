"""What the CPU does to start a kernel, read from Mosaic's LLVM: arrays and how copies see them."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

_NO_SWIZZLE = 16


@dataclasses.dataclass
class TensorMap:
    """How the copy engine sees an array: outermost first, in numbers, not bytes."""

    array: np.ndarray
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int

    def places(self, at: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """For each number of the box at a place (innermost first): its index, and if it is one."""
        index, inside = np.zeros(self.box, np.int64), np.ones(self.box, bool)
        positions = np.indices(self.box)
        for position, first, size, stride in zip(
            positions, reversed(at), self.sizes, self.strides, strict=True
        ):
            where = position + first
            index += where * stride
            inside &= (where >= 0) & (where < size)
        return index, inside


@dataclasses.dataclass(frozen=True)
class Start:
    """How a kernel is started.

    Attributes:
      grid: how many blocks, along x, y and z.
      shared_memory: bytes of a block.
      parameters: the kernel's, in their order: arrays, and a list of tensor maps.
    """

    grid: tuple[int, ...]
    shared_memory: int
    parameters: list


@dataclasses.dataclass(frozen=True)
class _Place:
    """A pointer: into what, and how far."""

    of: str
    at: int = 0


def start(llvm: str, arrays: list[np.ndarray]) -> Start:
    """What the function does that starts a kernel.

    arrays: flat, the call's operands and then its results.

    Raises:
      NotImplementedError: a line of LLVM that is not known here.
    """
    body = llvm[llvm.index("_mosaic_gpu(ptr %0, ptr %1, ptr %2) {") :]
    body = body[: body.index("\n}")]
    values: dict[str, object] = {"%2": _Place("arrays")}
    memory: dict[_Place, object] = {_Place("arrays", i): x for i, x in enumerate(arrays)}
    maps: list[TensorMap] = []

    def value(text: str):
        return values[text] if text.startswith("%") else int(text)

    for line in body.splitlines()[1:]:
        target, _, what = line.strip().rpartition(" = ")
        if found := re.match(r"getelementptr .*, ptr (%\d+).*, i\d+ (\S+)$", what):
            base, step = values[found[1]], value(found[2])
            array = isinstance(base, np.ndarray)
            values[target] = base[step:] if array else _Place(base.of, base.at + step)
        elif found := re.match(r"load ptr, ptr (%\d+)", what):
            values[target] = memory[values[found[1]]]
        elif found := re.match(r"load \[", what):
            values[target] = maps
        elif found := re.match(r"insertvalue \{.*\} (\S+), \w+ (\S+), ([\d, ]+)$", what):
            values[target] = (values.get(found[1]) or {}) | {found[3]: value(found[2])}
        elif found := re.match(r"extractvalue .* (%\d+), ([\d, ]+)$", what):
            values[target] = values[found[1]][found[2]]
        elif found := re.match(r"(?:ptrtoint|inttoptr) \w+ (%\d+) to", what):
            values[target] = values[found[1]]
        elif what.startswith("alloca"):
            values[target] = _Place(target)
        elif found := re.match(r"store \S.* (\S+), ptr (%\d+), align", what):
            memory[values[found[2]]] = value(found[1])
        elif found := re.match(r"call void @mosaic_gpu_init_tma_desc\((.*)\)", what):
            _, array, _, rank, *rest = (x.split()[1] for x in found[1].split(", "))
            sizes, strides, swizzle, box = rest
            numbers = [
                tuple(memory[_Place(values[x].of, i)] for i in range(int(rank)))
                for x in (sizes, strides, box)
            ]
            swizzle = 0 if int(swizzle) == _NO_SWIZZLE else int(swizzle)
            maps.append(TensorMap(values[array], *numbers, swizzle))
        elif "@mosaic_gpu_launch_kernel(" in what:
            _, *numbers, _, pointers = (x.split()[1] for x in what[:-1].split("(")[1].split(", "))
            given = []
            while (place := _Place(values[pointers].of, len(given))) in memory:
                given.append(memory[memory[place]])
            # Three each of the grid, a cluster and a block, and then shared memory.
            return Start(tuple(int(x) for x in numbers[:3]), int(numbers[9]), given)
        elif what and not what.startswith("ret "):
            raise NotImplementedError(f"Mosaic starts its kernels another way now: {what}")
    raise NotImplementedError("Mosaic starts its kernels another way now: no call that does it")
