"""What collectives send: bytes that one device puts on its links.

With n devices in a group, by the ring algorithms, which no other algorithm undercuts (each device's
share must leave it, and each other's must pass):

| collective | a device sends |
|---|---|
| all-reduce of s bytes | 2 (n-1)/n s: a reduce-scatter, then an all-gather |
| all-gather to s bytes | (n-1)/n s |
| reduce-scatter from s bytes | (n-1)/n s |
| all-to-all of s bytes | (n-1)/n s |
| collective-permute of s bytes | s |
| collective-broadcast of s bytes | s |
"""

import dataclasses
import math
import re

from rwkv_jax.hlo.text import Array, Instruction

_RING = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0 if n > 1 else 0.0,
    "collective-broadcast": lambda n: 1.0 if n > 1 else 0.0,
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One run of one.

    Attributes:
        kind: "all-reduce" and so on.
        group: devices that take part together.
        payload: bytes of the whole array that it works on, as one device sees it (an all-gather's
            result, a reduce-scatter's operand).
        sent: bytes that a device sends.
        dtype: of the largest array.
    """

    kind: str
    group: int
    payload: float
    sent: float
    dtype: str


def kind_of(opcode: str) -> str | None:
    """ "all-reduce" for "all-reduce" and "all-reduce-start"; None for no collective or a -done."""
    kind = opcode.removesuffix("-start")
    return kind if kind in _RING else None


def collective(instruction: Instruction, operands: list[Array], devices: int) -> Collective | None:
    """What an instruction sends; None where it is no collective (or only waits for one)."""
    kind = kind_of(instruction.opcode)
    if kind is None:
        return None
    if kind == "all-gather":
        # Its start form's shape is (operands, results): results are what is larger.
        per_operand = group_size(instruction, devices)
        arrays = [(x.bytes * per_operand, x.dtype) for x in operands]
    else:
        arrays = [(x.bytes, x.dtype) for x in operands]
    group = group_size(instruction, devices)
    payload = float(sum(size for size, _ in arrays))
    dtype = max(arrays, default=(0, ""))[1]
    return Collective(kind, group, payload, payload * _RING[kind](group), dtype)


def group_size(instruction: Instruction, devices: int) -> int:
    """Devices in one group, by any of XLA's ways to write groups; all `devices` where it says none.

    Examples: replica_groups={{0,1},{2,3}} -> 2; [2,4]<=[8] -> 4;
    mesh['data'=4,'tensor'=2] {'data'} -> 4, also with device_ids=([2,4]T(1,0)) before the names;
    source_target_pairs={{0,1},{1,0}} -> 2.

    Raises:
        ValueError: groups that are written in another way.
    """
    text = instruction.attributes
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", text):
        numbers = set(re.findall(r"\d+", pairs[1]))
        moves = [x for x in re.findall(r"\{(\d+),(\d+)", pairs[0]) if x[0] != x[1]]
        return len(numbers) if moves else 1
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'([^']*)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'([^']*)'", mesh[2]))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(iota[2])
    if lists := re.search(r"replica_groups=\{\{([\d,\s]*)\}", text):
        return len(re.findall(r"\d+", lists[1]))
    if (found := re.search(r"replica_groups=(?!\{\}).{0,80}", text)) is not None:
        raise ValueError(
            f"{instruction.name} has groups of devices that are not known: {found[0]}. How XLA"
            " writes them belongs in rwkv_jax/hlo/collectives.py"
        )
    return devices
