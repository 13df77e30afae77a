"""FLOPs of one instruction's matrix products: two for each multiplication that is added up."""

import json
import math
import re

import numpy as np

from rwkv_jax.hlo.text import Array, Instruction


def product_flops(instruction: Instruction, operands: list[Array]) -> float:
    """0 for whatever is no product. A kernel (custom call) says itself what it computes.

    Args:
        operands: the types of the instruction's operands.
    """
    match instruction.opcode:
        case "dot":
            return _dot(instruction, operands[0])
        case "convolution":
            return _convolution(instruction, operands)
        case "custom-call":
            return _custom_call(instruction, operands)
    return 0.0


def passes(instruction: Instruction) -> int:
    """How many bfloat16 products a TPU makes of this one: six for float32 in full, three for less.

    Source: JAX's documentation of `jax.lax.Precision`.
    """
    precision = re.search(r"operand_precision=\{([^}]*)\}", instruction.attributes)
    asked = set(precision[1].split(",")) if precision else set()
    return 6 if "highest" in asked else 3 if "high" in asked else 1


def _dot(instruction: Instruction, left: Array) -> float:
    contracted = _list(instruction.attributes, "lhs_contracting_dims")
    return 2.0 * instruction.arrays[0].size * math.prod(left.dimensions[i] for i in contracted)


def _custom_call(instruction: Instruction, operands: list[Array]) -> float:
    # Pallas: what its CostEstimate said.
    estimate = re.search(r'"cost_estimate":\{"flops":"?(\d+)', instruction.attributes)
    if estimate:
        return float(estimate[1])
    # cuBLAS: which dimensions it contracts stands in its configuration.
    config = re.search(r'"dot_dimension_numbers":(\{.*?\})', instruction.attributes)
    if config and operands:
        contracted = json.loads(config[1])["lhs_contracting_dimensions"]
        size = math.prod(operands[0].dimensions[int(i)] for i in contracted)
        return 2.0 * instruction.arrays[0].size * size
    return 0.0


def _convolution(instruction: Instruction, operands: list[Array]) -> float:
    """Only products with numbers inside the image count: a TPU writes batched matrix products as
    convolutions most of whose windows lie outside."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        raise ValueError(f"convolution {instruction.name} has no dim_labels")
    image, kernel, result = labels.groups()
    found = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    window = dict(re.findall(r"(\w+)=(\S+)", found[1])) if found else {}
    (x, k), y = operands[:2], instruction.arrays[0]
    pairs = 1
    for axis in sorted(set(result) & set("0123456789")):
        i = int(axis)
        pairs *= _pairs_inside(
            image=x.dimensions[image.index(axis)],
            size=k.dimensions[kernel.index(axis)],
            result=y.dimensions[result.index(axis)],
            stride=_of_axis(window, "stride", i, 1),
            dilation=_of_axis(window, "rhs_dilate", i, 1),
            spacing=_of_axis(window, "lhs_dilate", i, 1),
            before=_of_axis(window, "pad", i, 0),
        )
    batch, features = y.dimensions[result.index("b")], y.dimensions[result.index("f")]
    return 2.0 * batch * features * k.dimensions[kernel.index("i")] * pairs


def _pairs_inside(
    *, image: int, size: int, result: int, stride: int, dilation: int, spacing: int, before: int
) -> int:
    """How many (result, kernel) positions of an axis meet a number of the image."""
    place = (
        np.arange(result)[:, None] * stride + np.arange(size)[None, :] * dilation - before
    )  # [result, size], in an image with spacing - 1 holes between its numbers
    inside = (place >= 0) & (place <= (image - 1) * spacing) & (place % spacing == 0)
    return int(inside.sum())


def _of_axis(window: dict[str, str], key: str, axis: int, otherwise: int) -> int:
    if key not in window:
        return otherwise
    return int(window[key].split("x")[axis].split("_")[0])


def _list(attributes: str, key: str) -> list[int]:
    found = re.search(rf"{key}=\{{([\d,]*)\}}", attributes)
    return [int(x) for x in found[1].split(",") if x] if found else []
