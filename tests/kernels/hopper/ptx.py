"""PTX, which a GPU's compiler is given, as Python: one generator for a warp's 32 threads.

A register is an array of 32 numbers. Instructions become lines of one function, in which registers
are variables; what touches memory, barriers or other threads is the machine's (`machine.py`). Only
what the kernels are made of is known; anything else is an error that names it.

The meaning of instructions: PTX ISA, https://docs.nvidia.com/cuda/parallel-thread-execution.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

LANES = 32
SHARED = 1024  # where shared memory begins, as the kernels see it
_TYPES = {
    "b16": "u2", "u16": "u2", "s16": "i2", "f16": "f2", "f16x2": "f2", "bf16": "bf16",
    "bf16x2": "bf16", "b32": "u4", "u32": "u4", "s32": "i4", "f32": "f4", "b64": "u8", "u64": "u8",
    "s64": "i8", "pred": "?",
}  # fmt: skip
_KEPT_AS = {"r": "u4", "rd": "u8", "rs": "u2", "p": "?"}
_NUMPY = {name: np.dtype(name) for name in ("u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "?")}
_NUMPY["bf16"] = np.dtype(ml_dtypes.bfloat16)

# A wait is a loop of its own around one instruction.
_WAIT = re.compile(
    r"\{\s*LAB_WAIT:\s*mbarrier\.try_wait\.parity\.shared\.b64 P1, "
    r"\[([^\]]+)\], ([^,]+), [^;]+;\s*@P1 bra\.uni DONE;\s*bra\.uni\s+LAB_WAIT;\s*DONE:\s*\}"
)
_PRODUCT = re.compile(
    r"\{ \.reg \.pred p; setp\.ne\.b32 p, 1, 0; (wgmma\.mma_async[^;]*;) \}"
)  # to be added to the sums, always


@dataclasses.dataclass(frozen=True)
class Program:
    """A kernel.

    Attributes:
      name: of its entry.
      threads: of a block.
      run: `run(machine, warp)`, a generator that yields where a warp cannot go on.
    """

    name: str
    threads: int
    run: Callable[[Any, Any], Any]


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
    body = re.sub(r"^(\$L__BB\w+):", r"label \1;", body, flags=re.M)
    lines = _Lines()
    for statement in body.split(";"):
        if statement := " ".join(statement.split()):
            lines.add(statement)
    scope: dict[str, Any] = {"np": np, "LANES": LANES} | _HELPERS
    source = lines.source()
    exec(compile(source, name, "exec"), scope)  # noqa: S102, of our own making
    return Program(name, threads, scope["run"])


class _Lines:
    def __init__(self) -> None:
        self._lines: list[str] = []
        self._labels: dict[str, int] = {}
        self._constants: dict[str, str] = {}

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
            self._lines += ["            pass"]
            return
        guard = re.match(r"@(!?)%(p\d+) (.*)", statement)
        predicate = None
        if guard:
            predicate, statement = f"{'~' if guard[1] else ''}{guard[2]}", guard[3]
        opcode, _, rest = statement.partition(" ")
        self._lines.append("            " + self._line(opcode, rest.strip(), predicate))

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
        if kind in ("cp", "mbarrier", "fence", "bar", "wgmma", "elect", "wait", "ret", "st"):
            return self._of_machine(opcode, operands, predicate or "warp.all")
        if predicate is not None:
            raise NotImplementedError(f"{opcode} where only some threads take part")
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
            value = f"np.{_COMPARED[of[0]]}({first}, {second})"
            if "|" in target:  # of pairs: for each half
                low, high = (_variable(x) for x in target.split("|"))
                return f"{low}, {high} = ({value}).reshape(LANES, 2).T.copy()"
        elif kind == "selp":
            first, second, chosen = sources
            value = f"np.where({_variable(chosen)}, {self.read(first, type_)}, {self.read(second, type_)})"
        else:
            value = self._arithmetic(kind, of, sources)
        kept = _KEPT_AS[re.match(r"[a-z]+", _variable(target))[0]]
        return f"{_variable(target)} = kept_{_name(kept)}({value})"

    def _arithmetic(self, kind: str, of: list[str], sources: list[str]) -> str:
        type_ = of[-1]
        wide = "wide" in of
        if not _KNOWN.issuperset(of[:-1]) or (
            kind in ("min", "max") and type_[0] == "f" and "NaN" not in of
        ):
            raise NotImplementedError(f"{kind}.{'.'.join(of)}")
        form = _ARITHMETIC.get((kind, "hi") if "hi" in of else kind)
        if form is None:
            raise NotImplementedError(f"{kind}.{'.'.join(of)}")
        values = [self.read(x, type_) for x in sources]
        if kind == "mad" and wide:
            raise NotImplementedError("mad.wide")
        if wide:
            values = [
                f"{x}.astype('{_TYPES[type_][0]}{2 * int(_TYPES[type_][1])}')" for x in values
            ]
        if kind in ("shl", "shr", "bfe"):
            values[1:] = [f"{self.read(x, 'u32')}.astype({values[0]}.dtype)" for x in sources[1:]]
        if kind == "prmt":
            if sources[2] != "0x5410U":
                raise NotImplementedError(f"prmt {sources[2]}")
            values = values[:2]
        return form.format(*values)

    def _converted(self, of: list[str], sources: list[str]) -> str:
        *_, to, from_ = of
        values = [self.read(x, from_) for x in sources]
        if len(values) == 2:  # the first one is the upper half
            return f"joined({values[1]}, {values[0]}, '{_name(_TYPES[to])}')"
        return f"to_{_name(_TYPES[to])}({values[0]})"

    def _several(self, opcode: str, target: str, sources: list[str]) -> str:
        names = ", ".join(_variable(x) for x in _inside(target))
        kind, *of = opcode.split(".")
        if kind == "mov":
            return f"{names} = halves({self.read(sources[0], 'b32')})"
        space = "shared" if "shared" in of else "anywhere"
        return f"{names} = m.load_{space}(warp, {self.address(sources[0])}, '{_TYPES[of[-1]]}', {len(_inside(target))})"

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
            return f"m.load_{space}(warp, {self.address(sources[0])}, '{_TYPES[of[-1]]}', 1)[0]"
        if kind == "cvta":
            return self.read(sources[0], "b64")
        if kind == "movmatrix":
            return f"m.transposed_8x8({self.read(sources[0], 'b32')})"
        if kind == "shfl":
            value, lane = self.read(sources[0], "b32"), self.read(sources[1], "b32")
            by = {"bfly": "warp.lanes ^ {}", "idx": "np.broadcast_to({}, LANES)"}[of[1]].format(
                lane
            )
            return f"{value}[{by}]"
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
        if kind == "bar":
            count = self.read(operands[1], "b32") if len(operands) > 1 else "m.all_threads"
            return f"yield from m.meet({self.read(operands[0], 'b32')}, {count})"
        if kind == "fence":
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
                raise NotImplementedError(opcode)
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
            raise NotImplementedError(".".join(of))
        sums, lhs, rhs, _, *signs_and_turns = operands
        if signs_and_turns[:2] != ["1", "1"]:
            raise NotImplementedError("a product with its sign changed")
        turns = [bool(int(x)) for x in signs_and_turns[2:]]
        names = ", ".join(_variable(x) for x in _inside(sums))
        if lhs.startswith("{"):
            a = f"({', '.join(_variable(x) for x in _inside(lhs))})"
        else:
            a = f"({_variable(lhs)}[0], {turns[0]})"
        n = int(re.fullmatch(r"m64n(\d+)k16", shape)[1])
        return (
            f"{names} = m.product(warp, ({names}), {a}, {_variable(rhs)}[0], {turns[-1]}, {n}, "
            f"'{_name(_TYPES[left])}')"
        )

    def _product_of_registers(self, of: list[str], operands: list[str]) -> str:
        if of[2:5] != ["m16n8k16", "row", "col"] or of[5] != "f32" or of[6] != of[7]:
            raise NotImplementedError(".".join(of))
        to, *given = (f"({', '.join(_variable(y) for y in _inside(x))},)" for x in operands)
        return f"{to} = m.product_of_registers({', '.join(given)}, '{_name(_TYPES[of[6]])}')"

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
        as_ = _TYPES[type_]
        if operand.startswith("%"):
            variable = _variable(operand)
            kept = _KEPT_AS[re.match(r"[a-z]+", variable)[0]]
            return variable if kept == as_ else f"{variable}.view({_name(as_)})"
        if "_param_" in operand:
            return "m.parameter_itself()"
        if operand == "__dynamic_shmem__0":
            operand = str(SHARED)
        width = 4 if type_.endswith("x2") else _NUMPY[as_].itemsize
        bits = int(operand[2:], 16) if operand.startswith("0f") else int(operand.rstrip("U"), 0)
        value = f"np.full(LANES, {bits % 2 ** (8 * width)}, 'u{width}').view({_name(as_)})"
        return self._constants.setdefault(value, f"constant{len(self._constants)}")


def _variable(name: str) -> str:
    return name.strip().lstrip("%").replace("$L__", "label_")


def _name(dtype: str) -> str:
    return {"?": "pred"}.get(dtype, dtype)


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


# Of rounding and of how much of a product is kept: those that make no difference here, or are asked for.
_KNOWN = {"rn", "lo", "hi", "wide", "NaN", "approx", "ftz"}
_COMPARED = {"eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater",
             "ge": "greater_equal"}  # fmt: skip
_ARITHMETIC: dict[Any, str] = {
    "mov": "{0}", "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}",
    "mad": "{0} * {1} + {2}", "fma": "fused({0}, {1}, {2})", "neg": "-{0}",
    ("mul", "hi"): "high({0}, {1})",
    "min": "np.minimum({0}, {1})", "max": "np.maximum({0}, {1})",  # of floats: NaN if one is
    "and": "{0} & {1}", "or": "{0} | {1}", "xor": "{0} ^ {1}", "not": "~{0}",
    "shl": "{0} << {1}", "shr": "{0} >> {1}", "ex2": "np.exp2({0})",
    "bfe": "bits({0}, {1}, {2})",
    "prmt": "({0} & np.uint32(0xFFFF)) | ({1} << np.uint32(16))",
}  # fmt: skip


def _kept(dtype: str):
    kept = _NUMPY[dtype]

    def keep(x):
        x = np.broadcast_to(np.asarray(x), LANES) if np.ndim(x) == 0 else x
        return (
            x.astype(kept)
            if np.ndim(x)
            and x.dtype.kind in "?O"
            or x.dtype.itemsize * x.size != kept.itemsize * LANES
            else np.ascontiguousarray(x).view(kept)
        )

    return keep


def _fused(a, b, c):
    return (a.astype("f8") * b.astype("f8") + c.astype("f8")).astype(a.dtype)


def _bits(x, first, count):
    """So many bits from one on; of a signed number the highest of them is the sign."""
    width = x.dtype.type(8 * x.dtype.itemsize)
    return (x << (width - count - first)) >> (width - count)


def _high(x, y):
    """The upper half of a product."""
    width = 8 * x.dtype.itemsize
    return ((x.astype("O") * y.astype("O")) >> width).astype(x.dtype)


def _joined(low, high, dtype: str):
    pairs = np.stack([low, high], axis=1).astype(_NUMPY[dtype])
    return pairs.reshape(-1).view("u4")


_HELPERS = {
    **{_name(x): dtype for x, dtype in _NUMPY.items()},
    **{f"kept_{_name(x)}": _kept(x) for x in _KEPT_AS.values()},
    **{f"to_{_name(x)}": (lambda x, dtype=dtype: x.astype(dtype)) for x, dtype in _NUMPY.items()},
    "fused": _fused,
    "high": _high,
    "joined": _joined,
    "bits": _bits,
    "packed": lambda low, high: low.astype("u4") | (high.astype("u4") << np.uint32(16)),
    "halves": lambda x: ((x & np.uint32(0xFFFF)).astype("u2"), (x >> np.uint32(16)).astype("u2")),
}
