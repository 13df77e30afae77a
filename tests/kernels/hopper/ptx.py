"""PTX, which a GPU's compiler is given, as Python: one generator for a warp's 32 threads.

A register is an array of 32 numbers. Instructions become lines of one function, in which registers
are variables; what touches memory, barriers or other threads is the machine's (`machine.py`). Only
what the kernels are made of is known; anything else is an error that names it.

The meaning of instructions: PTX ISA, https://docs.nvidia.com/cuda/parallel-thread-execution.
"""

import collections
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from hopper.arithmetic import (
    ARITHMETIC,
    COMPARED,
    HELPERS,
    KEPT_AS,
    KNOWN,
    LANES,
    NUMPY,
    SHARED,
    TYPES,
    name_of,
)

# A wait is a loop of its own around one instruction.
_WAIT = re.compile(
    r"\{\s*LAB_WAIT:\s*mbarrier\.try_wait\.parity\.shared\.b64 P1, "
    r"\[([^\]]+)\], ([^,]+), [^;]+;\s*@P1 bra\.uni DONE;\s*bra\.uni\s+LAB_WAIT;\s*DONE:\s*\}"
)
_PRODUCT = re.compile(
    r"\{ \.reg \.pred p; setp\.ne\.b32 p, 1, 0; (wgmma\.mma_async[^;]*;) \}"
)  # to be added to the sums, always

_VOTE = re.compile(
    r"\{ \.reg \.pred p; setp\.ne\.b32 p, ([^,]+), 0; bar\.red\.and\.pred p, ([^,]+), (\d+), p; "
    r"selp\.b32 ([^,]+), 1, 0, p; \}"
)  # whether all threads say so

_OF_MACHINE = {"cp", "mbarrier", "fence", "bar", "wgmma", "elect", "wait", "vote", "ret", "st"}


@dataclasses.dataclass(frozen=True)
class Program:
    """A kernel.

    Attributes:
      name: of its entry.
      threads: of a block.
      run: `run(machine, warp)`, a generator that yields where a warp cannot go on.
      pieces: how many instructions of each opcode are in each piece that is run as a whole;
        `machine.passed` counts how often it is.
    """

    name: str
    threads: int
    run: Callable[[Any, Any], Any]
    pieces: list[collections.Counter]


def program(text: str) -> Program:
    """Translates the one kernel in a PTX module.

    Raises:
      NotImplementedError: an instruction that is not known here.
    """
    name = re.search(r"\.entry (\w+)\(", text)[1]
    threads = int(re.search(r"\.maxntid (\d+)", text)[1])
    body = text[text.index("\n{", text.index(".entry")) + 2 : text.index("\n}", text.index("\n{"))]
    body = re.sub(
        r"//[^\n]*|^\s*\.(loc|reg|shared)\b[^\n]*|^\$L__(tmp|func)\w*:", "", body, flags=re.M
    )
    body = _PRODUCT.sub(r"\1", _WAIT.sub(r"wait [\1], \2;", body))
    body = _VOTE.sub(r"vote \4, \1, \2, \3;", body)
    body = re.sub(r"^(\$L__BB\w+):", r"label \1;", body, flags=re.M)
    lines = _Lines()
    for statement in body.split(";"):
        if statement := " ".join(statement.split()):
            lines.add(statement)
    scope: dict[str, Any] = {"np": np, "LANES": LANES} | HELPERS
    source = lines.source()
    exec(compile(source, name, "exec"), scope)
    return Program(name, threads, scope["run"], lines.pieces)


class _Lines:
    def __init__(self) -> None:
        self._lines: list[str] = []
        self._labels: dict[str, int] = {}
        self._constants: dict[str, str] = {}
        self.pieces: list[collections.Counter] = []
        self._begin()

    def _begin(self) -> None:
        self._lines.append(f"            m.passed[{len(self.pieces)}] += 1")
        self.pieces.append(collections.Counter())

    def source(self) -> str:
        constants = [f"    {name} = {value}" for value, name in self._constants.items()]
        labels = [f"    {label} = {number}" for label, number in self._labels.items()]
        head = ["def run(m, warp):", *constants, *labels, "    at = 0", "    while True:"]
        return "\n".join([*head, "        if at == 0:", *self._lines, "            return"])

    def add(self, statement: str) -> None:
        if statement.startswith("label "):
            label = _variable(statement.split()[1])
            number = self._labels.setdefault(label, len(self._labels) + 1)
            # Falls into the next piece.
            self._lines += [f"            at = {number}", f"        if at == {number}:"]
            self._begin()
            return
        guard = re.match(r"@(!?)%(p\d+) (.*)", statement)
        predicate = None
        if guard:
            predicate, statement = f"{'~' if guard[1] else ''}{guard[2]}", guard[3]
        opcode, _, rest = statement.partition(" ")
        self._lines.append("            " + self._line(opcode, rest.strip(), predicate))
        self.pieces[-1][opcode] += 1
        if opcode.startswith("bra") and predicate is not None:
            self._begin()

    def _line(self, opcode: str, rest: str, predicate: str | None) -> str:
        kind, *of = opcode.split(".")
        operands = _operands(rest)
        type_ = of[-1] if of else ""
        if kind == "prefetch":
            return "pass"
        if kind == "mma":
            return self._product_of_registers(of, operands)
        if kind in ("ldmatrix", "stmatrix"):
            return self._matrices(kind, of, *operands)
        if kind == "bra":
            label = _variable(operands[0])
            self._labels.setdefault(label, len(self._labels) + 1)
            jump = f"at = {label}; continue"
            return jump if predicate is None else f"if m.all_or_none({predicate}): {jump}"
        if kind in _OF_MACHINE:
            return self._of_machine(opcode, operands, predicate or "warp.all")
        if predicate is not None:
            raise _unknown(f"{opcode} where only some threads take part")
        target, *sources = operands
        if kind in ("ld", "mov") and target.startswith("{"):
            return self._several(opcode, target, sources)
        if kind in ("ld", "cvta", "shfl", "movmatrix") or (kind == "mov" and _special(sources[0])):
            value = self._of_thread(opcode, sources)
        elif kind == "mov" and sources[0].startswith("{"):
            low, high = (self.read(x, "b16") for x in _inside(sources[0]))
            return f"{_variable(target)} = packed({low}, {high})"
        elif kind == "cvt":
            value = self._converted(of, sources)
        elif kind == "setp":
            first, second = (self.read(x, type_) for x in sources)
            if len(of) != 2 or of[0] not in COMPARED:
                raise _unknown(opcode)
            value = f"np.{COMPARED[of[0]]}({first}, {second})"
            if "|" in target:  # of pairs: for each half
                low, high = (_variable(x) for x in target.split("|"))
                return f"{low}, {high} = ({value}).reshape(LANES, 2).T.copy()"
        elif kind == "selp":
            first, second, chosen = sources
            first, second = (self.read(x, type_) for x in (first, second))
            value = f"np.where({_variable(chosen)}, {first}, {second})"
        else:
            value = self._arithmetic(kind, of, sources)
        kept = KEPT_AS[re.match(r"[a-z]+", _variable(target))[0]]
        return f"{_variable(target)} = kept_{name_of(kept)}({value})"

    def _arithmetic(self, kind: str, of: list[str], sources: list[str]) -> str:
        type_ = of[-1]
        wide = "wide" in of
        if not KNOWN.issuperset(of[:-1]) or (
            kind in ("min", "max") and type_[0] == "f" and "NaN" not in of
        ):
            raise _unknown(".".join((kind, *of)))
        form = ARITHMETIC.get((kind, "hi") if "hi" in of else kind)
        if form is None:
            raise _unknown(".".join((kind, *of)))
        values = [self.read(x, type_) for x in sources]
        if kind == "mad" and wide:
            raise _unknown("mad.wide")
        if wide:
            values = [f"{x}.astype('{TYPES[type_][0]}{2 * int(TYPES[type_][1])}')" for x in values]
        if kind in ("shl", "shr", "bfe"):
            values[1:] = [f"{self.read(x, 'u32')}.astype({values[0]}.dtype)" for x in sources[1:]]
        if kind == "prmt":
            if sources[2] != "0x5410U":
                raise _unknown(f"prmt {sources[2]}")
            values = values[:2]
        return form.format(*values)

    def _converted(self, of: list[str], sources: list[str]) -> str:
        *_, to, from_ = of
        values = [self.read(x, from_) for x in sources]
        if len(values) == 2:  # the first one is the upper half
            return f"joined({values[1]}, {values[0]}, '{name_of(TYPES[to])}')"
        return f"to_{name_of(TYPES[to])}({values[0]})"

    def _several(self, opcode: str, target: str, sources: list[str]) -> str:
        names = ", ".join(_variable(x) for x in _inside(target))
        kind, *of = opcode.split(".")
        if kind == "mov":
            return f"{names} = halves({self.read(sources[0], 'b32')})"
        space = "shared" if "shared" in of else "anywhere"
        address, count = self.address(sources[0]), len(_inside(target))
        return f"{names} = m.load_{space}({address}, '{TYPES[of[-1]]}', {count})"

    def _matrices(self, kind: str, of: list[str], first: str, second: str) -> str:
        """8 x 8 each, of 16-bit numbers: a row's address from each thread."""
        registers, address = (first, second) if kind == "ldmatrix" else (second, first)
        names = [_variable(x) for x in _inside(registers)]
        listed, turned = ", ".join(names) + ",", "trans" in of
        if kind == "ldmatrix":
            return f"{listed} = m.load_matrices({self.address(address)}, {len(names)}, {turned})"
        return f"m.store_matrices(warp, {self.address(address)}, ({listed}), {turned})"

    def _of_thread(self, opcode: str, sources: list[str]) -> str:
        kind, *of = opcode.split(".")
        if kind == "ld" and of[0].startswith("param"):
            return f"m.parameter({sources[0].strip('[]').rsplit('_', 1)[1]})"
        if kind == "ld":
            space = "shared" if "shared" in of else "anywhere"
            return f"m.load_{space}({self.address(sources[0])}, '{TYPES[of[-1]]}', 1)[0]"
        if kind == "cvta":
            return self.read(sources[0], "b64")
        if kind == "movmatrix":
            return f"m.transposed_8x8({self.read(sources[0], 'b32')})"
        if kind == "shfl":
            value, lane = self.read(sources[0], "b32"), self.read(sources[1], "b32")
            forms = {"bfly": "{}[warp.lanes ^ {}]", "idx": "{}[{}]"}
            if of[1] not in forms:
                raise _unknown(opcode)
            return forms[of[1]].format(value, lane)
        if sources[0] == "%tid.x":
            return "warp.threads"
        if sources[0].startswith("%ctaid."):
            return f"m.block[{sources[0][-1]!r}]"
        if sources[0] == "__dynamic_shmem__0":
            return str(SHARED)
        return self.read(sources[0], "b64")

    def _of_machine(self, opcode: str, operands: list[str], active: str) -> str:
        kind, *of = opcode.split(".")
        if kind == "ret":
            return "return"
        if kind == "elect":
            element, predicate = (_variable(x) for x in operands[0].split("|"))
            return f"{element} = np.zeros(LANES, 'u4'); {predicate} = warp.lanes == 0"
        if kind == "wait":
            return (
                f"yield from m.wait({self.address(operands[0])}, {self.read(operands[1], 'b32')})"
            )
        if kind == "vote":
            value, barrier, count = (self.read(x, "b32") for x in operands[1:])
            return f"{_variable(operands[0])} = yield from m.vote({value}, {barrier}, {count})"
        if kind == "bar":
            count = self.read(operands[1], "b32") if len(operands) > 1 else "m.all_threads"
            return f"yield from m.meet({self.read(operands[0], 'b32')}, {count})"
        if kind == "fence":
            if of[0] not in ("proxy", "mbarrier_init"):
                raise _unknown(opcode)
            return "m.fence(warp)" if of[0] == "proxy" else "pass"
        if kind == "wgmma":
            if of[0] == "mma_async":
                return self._product(of, operands)
            return {"fence": "pass", "commit_group": "warp.products.commit()"}.get(
                of[0], f"warp.products.finish({(operands or ['0'])[0]})"
            )
        if kind == "st":
            values = _inside(operands[1]) if operands[1].startswith("{") else [operands[1]]
            if "shared" not in of:
                raise _unknown(opcode)
            stored = ", ".join(self.read(x, of[-1]) for x in values)
            return f"m.store_shared(warp, {self.address(operands[0])}, {stored})"
        if kind == "mbarrier":
            if of[0] == "init":
                number = self.read(operands[1], "b32")
                return f"m.begin_barrier({active}, {self.address(operands[0])}, {number})"
            amount = self.read(operands[2], "b32") if "expect_tx" in of else "0"
            return f"m.arrive({active}, {self.address(operands[1])}, {amount})"
        if "commit_group" in of:
            return "warp.copies.commit()"
        if "wait_group" in of:
            return f"warp.copies.finish({operands[0]})"
        if "tensor" in of and "mbarrier" in of[-1]:
            to, source, barrier = operands
            array, where = _inside(source, "[]")
            at = ", ".join(self.read(x, "s32") for x in _inside(where))
            return (
                f"m.fetch(warp, {active}, {self.address(to)}, {self.read(array, 'b64')}, ({at},), "
                f"{self.address(barrier)})"
            )
        if "tensor" in of:
            array, where = _inside(operands[0], "[]")
            at = ", ".join(self.read(x, "s32") for x in _inside(where))
            return (
                f"m.send(warp, {active}, {self.read(array, 'b64')}, ({at},), "
                f"{self.address(operands[1])})"
            )
        to, source, size = operands
        return (
            f"m.send_bytes(warp, {active}, {self.address(to)}, {self.address(source)}, "
            f"{self.read(size, 'b32')})"
        )

    def _product(self, of: list[str], operands: list[str]) -> str:
        shape, _, left, right = of[-4:]
        if left != right:
            raise _unknown(".".join(("wgmma", *of)))
        sums, lhs, rhs, _, *signs_and_turns = operands
        if signs_and_turns[:2] != ["1", "1"]:
            raise _unknown("wgmma with a sign changed")
        turns = [bool(int(x)) for x in signs_and_turns[2:]]
        names = ", ".join(_variable(x) for x in _inside(sums))
        if lhs.startswith("{"):
            a = f"({', '.join(_variable(x) for x in _inside(lhs))})"
        else:
            a = f"({_variable(lhs)}[0], {turns[0]})"
        n = int(re.fullmatch(r"m64n(\d+)k16", shape)[1])
        return (
            f"{names} = m.product(warp, ({names}), {a}, {_variable(rhs)}[0], {turns[-1]}, {n}, "
            f"'{name_of(TYPES[left])}')"
        )

    def _product_of_registers(self, of: list[str], operands: list[str]) -> str:
        if of[2:5] != ["m16n8k16", "row", "col"] or of[5] != "f32" or of[6] != of[7]:
            raise _unknown(".".join(("mma", *of)))
        to, *given = (f"({', '.join(_variable(y) for y in _inside(x))},)" for x in operands)
        return f"{to} = m.product_of_registers({', '.join(given)}, '{name_of(TYPES[of[6]])}')"

    def address(self, operand: str) -> str:
        """[register + number], or [symbol + number]."""
        base, _, offset = operand.strip("[] ").partition("+")
        base = str(SHARED) if base == "__dynamic_shmem__0" else _variable(base)
        if "_param_" in base:
            base = "m.parameter_itself()"
        if base == str(SHARED):
            return f"np.full(LANES, {SHARED + int(offset or 0)}, 'u8')"
        return (
            f"({base}.astype('u8') + np.uint64({int(offset) % 2**64}))"
            if offset
            else f"{base}.astype('u8')"
        )

    def read(self, operand: str, type_: str) -> str:
        """A register or a number as what an instruction takes it for."""
        as_ = TYPES[type_]
        if operand.startswith("%"):
            variable = _variable(operand)
            kept = KEPT_AS[re.match(r"[a-z]+", variable)[0]]
            return variable if kept == as_ else f"{variable}.view({name_of(as_)})"
        if "_param_" in operand:
            return "m.parameter_itself()"
        if operand == "__dynamic_shmem__0":
            operand = str(SHARED)
        width = 4 if type_.endswith("x2") else NUMPY[as_].itemsize
        bits = int(operand[2:], 16) if operand.startswith("0f") else int(operand.rstrip("U"), 0)
        value = f"np.full(LANES, {bits % 2 ** (8 * width)}, 'u{width}').view({name_of(as_)})"
        return self._constants.setdefault(value, f"constant{len(self._constants)}")


def _unknown(what: str) -> NotImplementedError:
    return NotImplementedError(
        f"PTX that is not known here: {what}. What it means belongs in ptx.py, or arithmetic.py."
    )


def _variable(name: str) -> str:
    return name.strip().lstrip("%").replace("$L__", "label_")


def _special(operand: str) -> bool:
    return not operand.startswith(("%r", "%p", "{")) and not re.match(r"-?\d|0f", operand)


def _inside(operand: str, brackets: str = "{}") -> list[str]:
    return _operands(operand.strip()[1:-1] if operand.strip()[0] == brackets[0] else operand)


def _operands(text: str) -> list[str]:
    """Cut at commas outside of brackets."""
    found, depth, current = [], 0, ""
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            found.append(current.strip())
            current = ""
        else:
            current += letter
    return [*found, current.strip()] if current.strip() else found
