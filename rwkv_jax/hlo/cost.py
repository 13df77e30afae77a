"""What one run of a compiled program costs one device: products, memory traffic, messages.

XLA's own `cost_analysis` counts the body of a loop once; here a body counts as often as it runs,
loops in loops included.

Memory traffic is that of the device's main memory: an operation reads its operands and writes its
results, a fusion only what goes in and out of it, a slice only what it takes, an update in place
only what it changes; arrays in a TPU's fast memory cost nothing. Caches are not modelled, so on a
CPU or GPU it is an upper bound. Elementwise arithmetic is not counted as FLOPs.
"""

import collections
import dataclasses
import functools

from rwkv_jax.hlo.collectives import Collective, collective, kind_of
from rwkv_jax.hlo.loops import trip_count
from rwkv_jax.hlo.products import passes, product_flops
from rwkv_jax.hlo.text import Array, Computation, Instruction, Program, leaves

# Views, and what only waits for something that began before.
_MOVES_NOTHING = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "optimization-barrier", "domain"),
}
_BOOKKEEPING = ("AllocateBuffer", "ConcatBitcast", "Sharding")
_ASYNC_START, _ASYNC_DONE = '"AsyncCollectiveStart"', '"AsyncCollectiveDone"'
_TAKES_A_PART = {"slice", "dynamic-slice", "gather"}


@dataclasses.dataclass
class Cost:
    """Of one device and one run.

    Attributes:
        flops: of matrix products and kernels.
        passes_flops: the same, but a float32 product as often as a TPU makes it in bfloat16.
        memory_bytes: to and from main memory.
        collectives: how often each runs.
        unknown_loops: loops whose number of runs the program does not tell; counted once.
    """

    flops: float = 0.0
    memory_bytes: float = 0.0
    passes_flops: float = 0.0
    collectives: collections.Counter[Collective] = dataclasses.field(
        default_factory=collections.Counter
    )
    unknown_loops: tuple[str, ...] = ()

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.flops + other.flops,
            self.memory_bytes + other.memory_bytes,
            self.passes_flops + other.passes_flops,
            self.collectives + other.collectives,
            (*self.unknown_loops, *other.unknown_loops),
        )

    def times(self, n: int) -> "Cost":
        many = collections.Counter({key: count * n for key, count in self.collectives.items()})
        return Cost(
            self.flops * n, self.memory_bytes * n, self.passes_flops * n, many, self.unknown_loops
        )

    def sent_bytes(self, kind: str | None = None) -> float:
        """Bytes that a device sends through collectives of a kind (None: of all kinds)."""
        return sum(
            x.sent * count for x, count in self.collectives.items() if kind in (None, x.kind)
        )


def program_cost(program: Program) -> Cost:
    """The cost of the whole program.

    Example: a loop of 12 runs whose body is a product [64, 64] x [64, 64] costs 12 * 2 * 64**3.
    """
    return _Accountant(program).of(program.entry)


class _Accountant:
    def __init__(self, program: Program) -> None:
        self._program = program
        self.of = functools.cache(self._of)

    def _of(self, name: str) -> Cost:
        where = self._program.computations[name]
        return sum((self._of_instruction(where, x) for x in where.instructions), Cost())

    def _of_instruction(self, where: Computation, x: Instruction) -> Cost:
        match x.opcode:
            case "while":
                return self._of_loop(where, x)
            case "conditional":
                names = x.called("branch_computations", "true_computation", "false_computation")
                return max((self.of(name) for name in names), key=lambda cost: cost.memory_bytes)
            case "call" | "async-start":
                inner = (self.of(name) for name in x.called("to_apply", "calls"))
                return sum(inner, Cost())
            case "fusion":
                return self._of_fusion(where, x, x.arrays)
            case "fusion-start" if isinstance(x.shape, tuple):  # (operands, results, bookkeeping)
                return self._of_fusion(where, x, leaves(x.shape[1]))
        operands = [leaf for operand in where.operands(x) for leaf in operand.arrays]
        message = collective(x, operands, self._program.devices)
        flops = product_flops(x, operands)
        return Cost(
            flops,
            _moved(where, x),
            flops * passes(x),
            collections.Counter([message] if message else []),
        )

    def _of_loop(self, where: Computation, x: Instruction) -> Cost:
        trips = trip_count(self._program, where, x)
        body = sum((self.of(name) for name in x.called("body", "condition")), Cost())
        if trips is None:
            return dataclasses.replace(body, unknown_loops=(*body.unknown_loops, x.name))
        return body.times(trips)

    def _of_fusion(self, where: Computation, x: Instruction, results: list[Array]) -> Cost:
        inside = self._inside(x.called("calls")[0])
        return dataclasses.replace(inside, memory_bytes=self._through_fusion(where, x, results))

    @functools.cache  # noqa: B019  (lives as long as one count)
    def _inside(self, name: str) -> Cost:
        """Products and messages of a fused computation; what it moves is no memory traffic."""
        where = self._program.computations[name]
        total = Cost()
        for x in where.instructions:
            if x.opcode == "fusion":
                total += self._inside(x.called("calls")[0])
                continue
            operands = [leaf for operand in where.operands(x) for leaf in operand.arrays]
            message = collective(x, operands, self._program.devices)
            if message and self._goes_on(where, x):
                message = None
            flops = product_flops(x, operands)
            sent = collections.Counter([message] if message else [])
            total += Cost(flops, 0.0, flops * passes(x), sent)
        return total

    def _goes_on(self, where: Computation, x: Instruction) -> bool:
        """A TPU spreads a collective over three fusions: it counts where it starts."""
        return (
            kind_of(x.opcode) is not None
            and not self._starts(where)
            and _channel(x) in self._started
        )

    @functools.cached_property
    def _started(self) -> set[str]:
        return {
            _channel(x)
            for where in self._program.computations.values()
            if self._starts(where)
            for x in where.instructions
            if kind_of(x.opcode)
        }

    @staticmethod
    def _starts(where: Computation) -> bool:
        return any(_ASYNC_START in x.attributes for x in where.instructions)

    def _through_fusion(self, where: Computation, x: Instruction, results: list[Array]) -> float:
        inner = self._program.computations[x.called("calls")[0]]
        if any(_ASYNC_DONE in y.attributes for y in inner.instructions):
            return 0.0
        moved = 0.0
        for i, operand in enumerate(where.operands(x)):
            if i in inner.parameters and isinstance(operand.shape, Array):
                if operand.shape.space == 0:
                    moved += min(self._read(inner, inner.parameters[i]), operand.shape.bytes)
            else:
                moved += sum(array.main_memory_bytes for array in operand.arrays)
        return moved + self._written(inner, inner.root, results)

    def _read(self, inner: Computation, x: Instruction) -> float:
        """Bytes of `x`, of a fused computation, that its users there look at."""
        total = 0.0
        for user in inner.users[x.name]:
            first = bool(user.operands) and user.operands[0] == x.name
            if user.opcode in ("bitcast", "get-tuple-element"):
                total += self._read(inner, user)
            elif user.opcode == "fusion":
                nested = self._program.computations[user.called("calls")[0]]
                for i, name in enumerate(user.operands):
                    if name == x.name and _in_place(user, i):
                        total += self._read(inner, user)
                    elif name == x.name:
                        total += self._read(nested, nested.parameters[i])
            elif user.opcode in _TAKES_A_PART and first:
                total += user.arrays[0].bytes
            elif self._goes_on(inner, user):
                continue
            elif not (user.opcode == "tuple" or (user.opcode == "dynamic-update-slice" and first)):
                return x.arrays[0].bytes
        return total

    def _written(self, inner: Computation, x: Instruction, results: list[Array]) -> float:
        """Bytes that reach main memory, where `results` are the types that `x` has outside."""
        match x.opcode:
            case "tuple":
                total, rest = 0.0, results
                for part in inner.operands(x):
                    n = len(part.arrays)
                    total += self._written(inner, part, rest[:n])
                    rest = rest[n:]
                return total
            case "bitcast":
                return self._written(inner, inner.operands(x)[0], results)
            case "fusion":
                nested = self._program.computations[x.called("calls")[0]]
                return self._written(nested, nested.root, results)
            case "dynamic-update-slice":
                inside = any(array.space == 0 for array in results)
                return inner.operands(x)[1].arrays[0].bytes if inside else 0.0
            case "custom-call" if _ASYNC_START in x.attributes:
                return results[1].main_memory_bytes if len(results) > 1 else 0.0
            case "parameter":
                return 0.0
            case opcode if kind_of(opcode) or _is_bookkeeping(x):
                return 0.0
        outside = zip(results, x.arrays, strict=True)
        return sum(array.main_memory_bytes for array, inside in outside if inside in x.results)


def _moved(where: Computation, x: Instruction) -> float:
    """Main memory traffic of an instruction that stands on its own."""
    if x.opcode in _MOVES_NOTHING or x.opcode.endswith("-done") or _is_bookkeeping(x):
        return 0.0
    operands = [sum(y.main_memory_bytes for y in operand.arrays) for operand in where.operands(x)]
    results = sum(array.main_memory_bytes for array in x.results)
    if x.opcode.endswith("-start"):
        # (operands, results, ...) or, for copies, (result, operand, ...); the rest is bookkeeping.
        return moved_by_start(x)
    if x.opcode in _TAKES_A_PART:
        part = x.arrays[0].bytes if operands[0] else 0.0
        return part + results + sum(operands[1:])
    if x.opcode == "dynamic-update-slice":
        update = where.operands(x)[1].arrays[0].bytes
        return sum(operands[1:]) + (update if results else 0.0)
    if x.opcode == "scatter":
        updates = where.operands(x)[-1].arrays[0].bytes
        return sum(operands[1:]) + (2 * updates if results else 0.0)  # rows are read and written
    return sum(operands) + results


def moved_by_start(x: Instruction) -> float:
    """Main memory traffic of what an instruction begins and another, "-done", waits for."""
    if isinstance(x.shape, Array):
        return x.shape.main_memory_bytes
    source, result = (leaves(part) for part in x.shape[:2])
    if x.opcode == "copy-start":
        source, result = result, source
    if x.opcode == "slice-start":
        taken = sum(array.bytes for array in result)
        read = taken if any(array.space == 0 for array in source) else 0.0
        return read + sum(array.main_memory_bytes for array in result)
    return sum(array.main_memory_bytes for array in (*source, *result))


def _in_place(fusion: Instruction, operand: int) -> bool:
    """Whether a nested fusion only gives its operand another layout, in the same memory."""
    return f"output_to_operand_aliasing={{{{}}: ({operand}, {{}})}}" in fusion.attributes


def _is_bookkeeping(x: Instruction) -> bool:
    return x.opcode == "custom-call" and any(
        f'custom_call_target="{target}"' in x.attributes for target in _BOOKKEEPING
    )


def _channel(x: Instruction) -> str:
    kind = kind_of(x.opcode)
    return f"{kind} {x.attributes.partition('channel_id=')[2].partition(',')[0]}"
