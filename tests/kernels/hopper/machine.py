"""A block of a Hopper GPU, played on a CPU from a kernel's PTX.

Warps run one after the other, each until it has to wait, in an order that a test chooses; copies
and products happen when they are begun, or as late as they may. What depends on the order is a
race. Shared memory begins as NaN, and what threads have written is not seen by copies and products
before the fence that says so: reading it earlier, or copying over it, is an error.

What it does not know: time, caches, and the hazards of registers that the compiler looks after.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np

from hopper import products
from hopper.arithmetic import LANES, NUMPY, SHARED
from hopper.host import Start
from hopper.ptx import Program

_ARRAYS = 1 << 40  # arrays in main memory lie so far apart
_PARAMETERS = 1 << 60


class RaceError(AssertionError):
    """What one thread does meets what another one does, in no order."""


class _Later:
    """What is begun, in groups, and happens at once or when it is waited for."""

    def __init__(self, lazy: bool) -> None:
        self._lazy, self._open, self._groups = lazy, [], []

    def begin(self, what: Callable[[], None]) -> None:
        if self._lazy:
            self._open.append(what)
        else:
            what()

    def commit(self) -> None:
        self._groups.append(self._open)
        self._open = []

    def finish(self, but: int) -> None:
        while len(self._groups) > but:
            for what in self._groups.pop(0):
                what()


@dataclasses.dataclass
class _Warp:
    number: int
    products: _Later
    copies: _Later

    def __post_init__(self) -> None:
        self.lanes = np.arange(LANES, dtype="u4")
        self.threads = self.lanes + np.uint32(LANES * self.number)
        self.all = np.ones(LANES, bool)


@dataclasses.dataclass
class _Barrier:
    count: int
    pending: int
    bytes: int = 0
    phase: int = 0
    copies: list = dataclasses.field(default_factory=list)


class Machine:
    """One block at a time.

    Args:
      program: the kernel.
      start: what it is started with.
      order: of warps, a permutation of their numbers.
      lazy: copies and products happen as late as they may.
    """

    def __init__(self, program: Program, start: Start, *, order: Sequence[int], lazy: bool) -> None:
        self._program, self._parameters = program, start.parameters
        self._order, self._lazy, self._bytes = order, lazy, start.shared_memory
        self._maps = next((x for x in start.parameters if isinstance(x, list)), [])
        self.all_threads = np.full(LANES, program.threads, "u4")
        self.passed = [0] * len(program.pieces)
        self.turns = (0, 0)

    def run(self, block: Sequence[int]) -> None:
        """Raises RaceError, or RuntimeError where no warp can go on."""
        self.block = {axis: np.full(LANES, i, "u4") for axis, i in zip("xyz", block, strict=True)}
        whole = -(-self._bytes // 16) * 16  # in rows of 16 bytes, as matrices are read
        self._memory = np.full(whole, 0xFF, "u1")
        self._written_by = np.zeros(whole // 4, "i2")
        self._barriers: dict[int, _Barrier] = {}
        self._met: dict[int, list[int]] = {}  # threads there, how often all were
        self._votes: dict[tuple[int, int], list[bool]] = {}  # by barrier and time
        warps = [
            _Warp(i, _Later(self._lazy), _Later(self._lazy))
            for i in range(self._program.threads // LANES)
        ]
        running = {i: self._program.run(self, warps[i]) for i in self._order}
        while running:
            self._moved = False
            for i, warp in list(running.items()):
                if next(warp, self) is self:
                    del running[i]
                    warps[i].products.finish(0)
                    warps[i].copies.finish(0)
                    self._moved = True
            if running and not self._moved:
                raise RuntimeError(f"{self._program.name}: warps {sorted(running)} wait for ever")

    # --- threads ----------------------------------------------------------------------------------

    def all_or_none(self, predicate: np.ndarray) -> bool:
        if predicate.all() != predicate.any():
            raise NotImplementedError("threads of a warp that take different branches")
        return bool(predicate[0])

    def meet(self, barrier: np.ndarray, count: np.ndarray) -> Iterator[None]:
        state = self._met.setdefault(int(barrier[0]), [0, 0])
        state[0] += LANES
        times = state[1]
        self._moved = True
        if state[0] == count[0]:
            state[:] = 0, times + 1
        while state[1] == times:
            yield

    def vote(self, value: np.ndarray, barrier: np.ndarray, count: np.ndarray) -> Generator:
        """Waits as `meet` does; gives 1 if all threads' values are not 0, else 0."""
        number = int(barrier[0])
        _, time = self._met.setdefault(number, [0, 0])
        votes = self._votes.setdefault((number, time), [])
        votes.append(bool(value.all()))
        yield from self.meet(barrier, count)
        return np.full(LANES, all(votes), "u4")

    def transposed_8x8(self, register: np.ndarray) -> np.ndarray:
        numbers = register.view("u2").reshape(8, 8)  # a row is four threads' pairs
        return np.ascontiguousarray(numbers.T).reshape(-1).view("u4")

    # --- barriers of copies -----------------------------------------------------------------------

    def begin_barrier(self, active, address, count) -> None:
        for at in set(address[active].tolist()):
            self._barriers[at] = _Barrier(int(count[0]), int(count[0]))

    def arrive(self, active, address, amount) -> None:
        barrier = self._barriers[int(address[0])]
        barrier.bytes += int(np.broadcast_to(amount, LANES)[active].sum())
        barrier.pending -= int(active.sum())
        self._moved = True
        self._complete(barrier)

    def wait(self, address, parity) -> Iterator[None]:
        barrier = self._barriers[int(address[0])]
        while True:
            if barrier.phase == parity[0] and barrier.pending == 0:
                while barrier.copies:  # as late as they may come
                    barrier.copies.pop(0)()
                self._complete(barrier)
            if barrier.phase != parity[0]:
                self._moved = True
                return
            yield

    def _complete(self, barrier: _Barrier) -> None:
        if barrier.pending < 0:
            raise RaceError("more threads arrive at a barrier than it waits for")
        if barrier.pending == 0 and barrier.bytes == 0 and not barrier.copies:
            barrier.phase, barrier.pending = 1 - barrier.phase, barrier.count

    # --- shared memory ----------------------------------------------------------------------------

    def load_shared(self, address, dtype: str, count: int) -> tuple:
        dtype = NUMPY[dtype]
        first = self._index(address, dtype.itemsize)
        self._take_turns(address, dtype.itemsize * count)
        return tuple(self._memory.view(dtype)[first + i] for i in range(count))

    def store_shared(self, warp: _Warp, address, *values) -> None:
        size = values[0].dtype.itemsize
        first = self._index(address, size)
        self._take_turns(address, size * len(values))
        for i, value in enumerate(values):
            self._memory.view(value.dtype)[first + i] = value
            self._written_by[(first + i) * size // 4] = warp.number + 1

    def load_matrices(self, address, count: int, turned: bool) -> tuple:
        found = []
        for i in range(count):
            rows = self._index(address[8 * i : 8 * i + 8], 16)
            self._take_turns(address[8 * i : 8 * i + 8], 16)
            numbers = self._memory.view("u2").reshape(-1, 8)[rows]
            numbers = numbers.T if turned else numbers
            found.append(np.ascontiguousarray(numbers).reshape(-1).view("u4"))
        return tuple(found)

    def store_matrices(self, warp: _Warp, address, registers, turned: bool) -> None:
        for i, register in enumerate(registers):
            rows = self._index(address[8 * i : 8 * i + 8], 16)
            self._take_turns(address[8 * i : 8 * i + 8], 16)
            numbers = register.view("u2").reshape(8, 8)
            self._memory.view("u2").reshape(-1, 8)[rows] = numbers.T if turned else numbers
            self._written_by.reshape(-1, 4)[rows] = warp.number + 1

    def _take_turns(self, address: np.ndarray, size: int) -> None:
        offsets = address.astype("i8")
        offsets -= offsets[0] // 128 * 128  # which change no bank: 128 bytes are one word of each
        asked, at_least = _turns(offsets.tobytes(), size)
        self.turns = self.turns[0] + asked, self.turns[1] + at_least

    def fence(self, warp: _Warp) -> None:
        self._written_by[self._written_by == warp.number + 1] = 0

    def _index(self, address: np.ndarray, size: int) -> np.ndarray:
        at = address.astype("i8") - SHARED
        if (at % size).any() or at.min() < 0 or at.max() + size > self._bytes:
            raise RuntimeError(
                f"{size} bytes of shared memory each at {at.min()} to {at.max()}, of "
                f"{self._bytes} that the block has"
            )
        return at // size

    def _fenced(self, at: np.ndarray) -> None:
        if self._written_by[at // 4].any():
            raise RaceError("a copy or a product meets what threads wrote, before a fence")

    # --- main memory ------------------------------------------------------------------------------

    def parameter(self, number: int) -> np.ndarray:
        return np.full(LANES, _ARRAYS * (number + 1), "u8")

    def parameter_itself(self) -> np.ndarray:
        return np.full(LANES, _PARAMETERS, "u8")

    def load_anywhere(self, address, dtype: str, count: int) -> tuple:
        array, at = self._array(address)
        numbers = array.view(NUMPY[dtype])
        first = at // numbers.dtype.itemsize
        return tuple(numbers[first + i] for i in range(count))

    def _array(self, address: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        number = int(address[0]) // _ARRAYS - 1
        return self._parameters[number], address.astype("i8") - _ARRAYS * (number + 1)

    def fetch(self, warp, active, to, tensor_map, at, barrier) -> None:
        """A box of an array comes to shared memory; beyond the array are zeros."""
        for lane in np.flatnonzero(active):
            of, place, inside, target = self._copy(lane, tensor_map, at, to)
            waiting = self._barriers[int(barrier[lane])]
            self._fenced(target * of.array.itemsize)

            def copy(of=of, place=place, inside=inside, target=target, waiting=waiting) -> None:
                numbers = np.where(inside, of.array[np.where(inside, place, 0)], 0)
                self._memory.view(of.array.dtype)[target] = numbers.astype(of.array.dtype)
                waiting.bytes -= target.size * of.array.itemsize

            if self._lazy:
                waiting.copies.append(copy)
            else:
                copy()
                self._complete(waiting)

    def send(self, warp: _Warp, active, tensor_map, at, source) -> None:
        """A box goes from shared memory to its place; what would be beyond the array does not."""
        for lane in np.flatnonzero(active):
            of, place, inside, target = self._copy(lane, tensor_map, at, source)
            self._fenced(target * of.array.itemsize)

            def copy(of=of, place=place, inside=inside, target=target) -> None:
                numbers = self._memory.view(of.array.dtype)[target]
                of.array[place[inside]] = numbers[inside]

            warp.copies.begin(copy)

    def send_bytes(self, warp: _Warp, active, to, source, size) -> None:
        for lane in np.flatnonzero(active):
            array, at = self._array(to[lane : lane + 1])
            read = self._index(int(source[lane]) + np.arange(int(size[lane])), 1)
            self._fenced(read)

            def copy(array=array, at=int(at[0]), read=read) -> None:
                array.view("u1")[at : at + read.size] = self._memory[read]

            warp.copies.begin(copy)

    def _copy(self, lane: int, tensor_map, at, shared):
        of = self._maps[(int(tensor_map[lane]) - _PARAMETERS) // 128]
        place, inside = of.places([int(x[lane]) for x in at])
        # In the order of the box, which a swizzle permutes within shared memory.
        linear = np.arange(place.size).reshape(place.shape) * of.array.itemsize
        target = products.swizzled(int(shared[lane]) + linear, of.swizzle)
        return of, place, inside, self._index(target, of.array.itemsize)

    # --- products ---------------------------------------------------------------------------------

    def product_of_registers(self, a, b, sums, dtype: str) -> tuple:
        """mma: a [16, 16] times b [16, 8], all a warp's own, at once."""
        kind = NUMPY[dtype]
        left = products.of_registers(a, kind).astype("f4")
        right = products.of_registers((b[0], b[0], b[1], b[1]), kind).astype("f4")[:8].T
        product = products.spread(left @ right)
        return tuple((x.view("f4") + y).view("u4") for x, y in zip(sums, product, strict=True))

    def product(self, warp: _Warp, sums, a, b: int, turned: bool, n: int, dtype: str):
        """sums + a b, of a warp's 16 rows; a in registers, or (descriptor, whether turned)."""
        kind = NUMPY[dtype]
        old = [x.view("f4") for x in sums]  # some of which may still be to come
        new = [np.full(LANES, np.nan, "f4") for _ in sums]

        def read(descriptor, rows, turned) -> np.ndarray:
            at = self._index(products.addresses(int(descriptor), rows, turned), 2)
            self._fenced(2 * at)
            return self._memory.view(kind)[at].astype("f4")

        def multiply() -> None:
            if len(a) == 4:
                left = products.of_registers(a, kind).astype("f4")
            else:
                first = 16 * (warp.number % 4)
                left = read(a[0], 64, a[1])[first : first + 16]
            product = products.spread(left @ read(b, n, turned).T)
            for to, before, x in zip(new, old, product, strict=True):
                to[:] = before + x

        warp.products.begin(multiply)
        return tuple(x.view("u4") for x in new)

    def executed(self) -> collections.Counter:
        """Instructions by opcode, of all warps that ran."""
        total: collections.Counter = collections.Counter()
        for times, piece in zip(self.passed, self._program.pieces, strict=True):
            total.update({opcode: times * count for opcode, count in piece.items()})
        return total


@functools.lru_cache(maxsize=4096)
def _turns(addresses: bytes, size: int) -> tuple[int, int]:
    """How often shared memory is asked, and would be at least: 32 banks give a word of 4 bytes each
    a time.

    Of 8 and 16 bytes a thread, half and a quarter of a warp ask together.
    """
    address, words = np.frombuffer(addresses, "i8"), -(-size // 4)
    together = LANES // words if len(address) == LANES else len(address)
    asked = 0
    for threads in np.split(address, len(address) // together):
        every = np.unique(np.add.outer(threads // 4, np.arange(words)))
        asked += np.bincount(every % 32).max()
    bytes_ = np.unique(np.add.outer(address, np.arange(size))).size
    return int(asked), -(-bytes_ // 128)
