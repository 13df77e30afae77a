"""The whole training step through the real compilers, for TPUs and for a Hopper GPU.

Minutes: run by `make test-slow`.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Sequence

import jax
import pytest

from rwkv_jax.config import DataConfig, RunConfig
from rwkv_jax.data.config import LoaderConfig
from rwkv_jax.evaluation.config import EvalConfig
from rwkv_jax.hlo import parse
from rwkv_jax.hlo.text import Computation, Instruction, Program
from rwkv_jax.models import ClipConfig, rwkv_clip_b16, rwkv_clip_b32
from rwkv_jax.models.config import Remat
from rwkv_jax.training.setup import set_up
from rwkv_kernels.gpu import topology as gpu_topology
from rwkv_kernels.tpu import topology as tpu_topology

pytestmark = [pytest.mark.aot, pytest.mark.slow]

BATCH_PER_CHIP = 256


def _lowered(
    model: ClipConfig, remat: Remat, devices: Sequence[jax.Device], *, unroll: bool | None = False
) -> jax.stages.Lowered:
    """A step of two layers a tower: in a scan they make the program that twelve make."""
    of_tower = {"depth": 2, "remat": remat, "unroll": unroll}
    config = RunConfig(
        model=ClipConfig(
            dataclasses.replace(model.image, **of_tower),
            dataclasses.replace(model.text, **of_tower),
        ),
        data=DataConfig("none", "train", LoaderConfig(image_size=224, context_length=77)),
        batch_size=BATCH_PER_CHIP * len(devices),
        steps=100,
        eval=EvalConfig(),
    )
    setup = set_up(config, devices)
    return setup.step.lower(setup.state_like, setup.batch_like)


@pytest.mark.parametrize(
    ("model", "remat"),
    [(rwkv_clip_b32, "block"), (rwkv_clip_b32, "dots"), (rwkv_clip_b16, "dots")],
)
def test_tpu_kernels_stand_in_the_step_without_relayouts(model, remat: Remat):
    devices = tpu_topology.mesh("v5e:2x2", devices=4).devices.flat
    program = _lowered(model(), remat, list(devices)).compile().as_text()
    lines = program.splitlines()
    kernels = [
        re.match(r" *(?:ROOT )?%(\w+)", line)[1] for line in lines if '"tpu_custom_call"' in line
    ]
    # A tower each: once forward, once backward; and once more forward, where it is recomputed, as
    # what is normed always is.
    assert collections.Counter(kernels) == {
        "bi_wkv6_forward": 4 if remat == "block" else 2,
        "bi_wkv6_backward": 2,
        "ddlerp_backward": 2,
        "head_norm_forward": 4,
        "head_norm_backward": 2,
    }

    parsed = parse(program)
    entry = parsed.computations[parsed.entry]
    # Patches are not cut out of pixels in memory.
    pixels = [x for x in entry.instructions if x.arrays and _size(x) == BATCH_PER_CHIP * 224**2 * 3]
    assert not [x.name for x in pixels if x.opcode in ("copy", "reshape", "transpose")]
    # One operation takes a parameter with its gradient and all that the optimizer keeps of it, and
    # writes what is new of all three.
    updates = [
        x
        for x in entry.instructions
        if x.opcode == "fusion" and sum(map(_of_words, entry.operands(x))) > 1
    ]
    assert [_of_words(x) for x in updates] == [3]

    for tokens in (model().image.grid ** 2, 77):
        moved = [line for line in lines if _is_relayout(line, BATCH_PER_CHIP * tokens * 640)]
        assert not moved, moved


def _is_relayout(line: str, size: int) -> bool:
    """Whether a line copies or turns an array of this many numbers on its own, in a block."""
    place = re.search(r'op_name="([^"]*)"', line)
    if place and "/while/body/" not in place[1]:  # where a tower begins and ends, once a step
        return False
    found = re.match(r" *(?:ROOT )?%\S+ = \w+\[([\d,]+)\]\S* (?:copy|transpose)\(", line)
    return bool(found) and math.prod(int(n) for n in found[1].split(",")) == size


@pytest.mark.parametrize("unroll", [False, None])
def test_gpu_kernels_stand_in_the_step_without_relayouts(unroll):
    # Without a GPU nothing can be tried out, so matrix products are left to cuBLAS as they are.
    options = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}
    devices = list(gpu_topology.mesh().devices.flat)
    lowered = _lowered(rwkv_clip_b32(), "block", devices, unroll=unroll)
    program = parse(lowered.compile(compiler_options=options).as_text() or "")
    calls = [
        (where, x)
        for where in program.computations.values()
        for x in where.instructions
        if 'custom_call_target="mosaic_gpu' in x.attributes
    ]
    # Of each tower: forward, forward again and backward, of which interpolations have two, and
    # logits of decays none: of the WKV, of interpolations, of head norms and of logits. In a loop
    # its two layers are one; a GPU has no loop if nothing is said of it.
    assert len(calls) == 2 * (3 + 4 + 3 + 2) * (2 if unroll is None else 1)
    for where, call in calls:
        tokens = [x for x in where.operands(call) if _size(x) >= BATCH_PER_CHIP * 49 * 640]
        assert tokens or "decay_logits" in call.op_name
        for x in tokens:
            made_by = _made_by(program, where, x)
            assert not made_by <= {"copy", "transpose", "convert"}, (made_by, call.op_name)
    # Parameters and what the optimizer keeps of them are written where they are.
    copies = [x for where in program.computations.values() for x in where.instructions]
    copies = [x for x in copies if x.opcode == "copy" and x.arrays[0].dtype == "f32"]
    assert not [x for x in copies if _size(x) >= 640 * 640]


def _of_words(x: Instruction) -> int:
    """How many of its arrays are as large as the embedding of all words."""
    return sum(array.dimensions == (49408, 640) for array in x.arrays)


def _size(x: Instruction) -> int:
    return max(array.size for array in x.arrays)


def _made_by(program: Program, where: Computation, x: Instruction) -> set[str]:
    """The operations that an array comes from, seen through views, and into and out of fusions."""
    if x.opcode in ("bitcast", "reshape"):
        return _made_by(program, where, where.operands(x)[0])
    if x.opcode == "get-tuple-element":
        (source,) = where.operands(x)
        while source.opcode == "opt-barrier":
            (source,) = where.operands(source)
        index = int(re.search(r"index=(\d+)", x.attributes)[1])
        part = where.operands(source)[index] if source.opcode == "tuple" else source
        return _made_by(program, where, part)
    if x.opcode == "fusion":
        inner = program.computations[x.called("calls")[0]]
        return {y.opcode for y in inner.instructions} - {"parameter", "bitcast", "tuple"}
    if x.opcode == "parameter":
        for outer in program.computations.values():
            for fusion in outer.instructions:
                if fusion.opcode == "fusion" and fusion.called("calls") == [where.name]:
                    return _made_by(program, outer, outer.operands(fusion)[int(x.literal)])
    return {x.opcode}
