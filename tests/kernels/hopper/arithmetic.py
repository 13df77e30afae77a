"""Numbers of a warp's 32 threads, and what PTX's arithmetic does with them.

A register is an array of 32, kept as unsigned numbers of its width; an instruction views them as
what its type says. A pair of 16-bit numbers in one register is an array of 64 to it.
"""

from typing import Any

import ml_dtypes
import numpy as np

LANES = 32
SHARED = 1024  # where shared memory begins, as the kernels see it
TYPES = {
    "b16": "u2", "u16": "u2", "s16": "i2", "f16": "f2", "f16x2": "f2", "bf16": "bf16",
    "bf16x2": "bf16", "b32": "u4", "u32": "u4", "s32": "i4", "f32": "f4", "b64": "u8", "u64": "u8",
    "s64": "i8", "pred": "?",
}  # fmt: skip
KEPT_AS = {"r": "u4", "rd": "u8", "rs": "u2", "p": "?"}
NUMPY = {name: np.dtype(name) for name in ("u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "?")}
NUMPY["bf16"] = np.dtype(ml_dtypes.bfloat16)


# What says how to round and what of a product to keep, and makes no difference here or is obeyed.
KNOWN = {"rn", "lo", "hi", "wide", "NaN", "approx", "ftz"}
COMPARED = {"eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater",
             "ge": "greater_equal"}  # fmt: skip
ARITHMETIC: dict[Any, str] = {
    "mov": "{0}", "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}",
    "mad": "{0} * {1} + {2}", "fma": "fused({0}, {1}, {2})", "neg": "-{0}",
    ("mul", "hi"): "high({0}, {1})",
    "min": "np.minimum({0}, {1})", "max": "np.maximum({0}, {1})",  # of floats: NaN if one is
    "and": "{0} & {1}", "or": "{0} | {1}", "xor": "{0} ^ {1}", "not": "~{0}",
    "shl": "{0} << {1}", "shr": "{0} >> {1}", "ex2": "np.exp2({0})",
    "rsqrt": "1 / np.sqrt({0})",
    "bfe": "bits({0}, {1}, {2})",
    "prmt": "({0} & np.uint32(0xFFFF)) | ({1} << np.uint32(16))",
}  # fmt: skip


def name_of(dtype: str) -> str:
    """What a dtype is called in a program."""
    return {"?": "pred"}.get(dtype, dtype)


def _kept(dtype: str):
    kept = NUMPY[dtype]

    def keep(x: Any) -> np.ndarray:
        """An instruction's result as a register holds it."""
        x = np.asarray(x)
        if x.ndim == 0:
            x = np.broadcast_to(x, LANES)
        same_bits = x.dtype.itemsize * x.size == kept.itemsize * LANES and x.dtype.kind not in "?O"
        return np.ascontiguousarray(x).view(kept) if same_bits else x.astype(kept)

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
    with np.errstate(over="ignore"):  # to an infinity, which a GPU does not remark upon
        pairs = np.stack([low, high], axis=1).astype(NUMPY[dtype])
    return pairs.reshape(-1).view("u4")


HELPERS = {
    **{name_of(x): dtype for x, dtype in NUMPY.items()},
    **{f"kept_{name_of(x)}": _kept(x) for x in KEPT_AS.values()},
    **{f"to_{name_of(x)}": (lambda x, dtype=dtype: x.astype(dtype)) for x, dtype in NUMPY.items()},
    "fused": _fused,
    "high": _high,
    "joined": _joined,
    "bits": _bits,
    "packed": lambda low, high: low.astype("u4") | (high.astype("u4") << np.uint32(16)),
    "halves": lambda x: ((x & np.uint32(0xFFFF)).astype("u2"), (x >> np.uint32(16)).astype("u2")),
}
