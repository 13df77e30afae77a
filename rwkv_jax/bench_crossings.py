"""How often activations cross main memory in a compiled block: what an accelerator's time goes to.

A block of an image tower is compiled for a TPU or GPU that need not be there. Each operation of the
compiled program reads its operands from memory and writes its results; those as large as an
activation are counted, in units of one [B, T, D] in bfloat16. A float32 one counts two, and what a
TPU's XLA keeps in fast memory from one operation to the next counts nothing.

Needs the extra `aot`: python -m rwkv_jax.bench_crossings [--device h200] [--out FILE.md]
"""

import argparse
import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import tqdm
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import rwkv_kernels.gpu.topology
import rwkv_kernels.tpu.topology
from rwkv_jax.hlo import parse
from rwkv_jax.hlo.cost import moved_by_start
from rwkv_jax.hlo.text import Instruction
from rwkv_jax.models import ClipConfig, rwkv_clip_b16, rwkv_clip_b32
from rwkv_jax.models.block import Block
from rwkv_jax.models.config import ImageConfig
from rwkv_jax.models.image_encoder import image_block_spec
from rwkv_jax.models.token_shift import image_shift
from rwkv_kernels.bench import save

BATCH = 256
DEVICES = {
    "v5e": lambda: rwkv_kernels.tpu.topology.mesh("v5e:2x2", devices=1),
    "h200": rwkv_kernels.gpu.topology.mesh,
}
MODELS: dict[str, Callable[[], ClipConfig]] = {"B/32": rwkv_clip_b32, "B/16": rwkv_clip_b16}
# Views, and the waiting half of what began before.
_MOVES_NOTHING = {"parameter", "bitcast", "tuple", "get-tuple-element", "constant", "reshape"}


def compiled_block(
    device: str, config: ImageConfig, wkv: Callable | None, *, backward: bool
) -> str:
    """The compiled program of a block, forward, or forward and all gradients.

    wkv: in place of the one that the model picks.
    """
    mesh = DEVICES[device]()
    spec = image_block_spec(config)
    spec = spec if wkv is None else dataclasses.replace(spec, wkv=wkv)
    block = nnx.eval_shape(lambda: Block(spec, 0, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(block)
    shift = functools.partial(
        image_shift, heads=config.heads, grid=(config.grid,) * 2, with_cls_token=False
    )
    sharding = NamedSharding(mesh, PartitionSpec())

    def there(tree):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    def forward(state, x):
        return nnx.merge(graphdef, state)(x, shift)

    def with_gradients(state, x, g):
        y, pullback = jax.vjp(forward, state, x)
        return y, pullback(g)

    x = there(jax.ShapeDtypeStruct((BATCH, config.grid**2, config.width), jnp.bfloat16))
    # Without a GPU nothing can be tried out, so matrix products are left to cuBLAS as they are.
    options: dict[str, str | bool] = {
        "xla_gpu_enable_triton_gemm": False,
        "xla_gpu_autotune_level": "0",
    }
    with jax.set_mesh(mesh):
        function, inputs = (with_gradients, (x, x)) if backward else (forward, (x,))
        lowered = jax.jit(function).lower(there(state), *inputs)
        return lowered.compile(compiler_options=options if device == "h200" else {}).as_text() or ""


def crossings(program: str, config: ImageConfig) -> dict[str, int]:
    """Units of [B, T, D] in bfloat16 that cross main memory, by kind of operation."""
    unit = 2 * BATCH * config.grid**2 * config.width
    units: dict[str, float] = collections.defaultdict(float)
    text = parse(program)
    entry = text.computations[text.entry]
    for x in entry.instructions:
        if x.opcode in _MOVES_NOTHING or x.opcode.endswith("-done"):
            continue
        read = {each.name: each for each in entry.operands(x)}  # twice the same is read once
        operands = [array for each in read.values() for array in each.arrays]
        if x.opcode.endswith("-start"):  # perhaps of a part, and its shape names the source again
            whole = max((array.unpadded_bytes for array in operands), default=0)
            units[_kind(x)] += moved_by_start(x) / unit if whole > 0.9 * unit else 0
            continue
        for array in (*operands, *x.results):
            if array.space == 0 and array.unpadded_bytes > 0.9 * unit:
                units[_kind(x)] += array.unpadded_bytes / unit
    return {kind: round(count) for kind, count in units.items()}


def _kind(x: Instruction) -> str:
    if x.opcode == "custom-call" and re.search("tpu_custom_call|mosaic_gpu", x.attributes):
        return "own kernels"
    if x.opcode in ("custom-call", "dot", "convolution") or "kind=kOutput" in x.attributes:
        return "matrix products and what is fused into them"
    if x.opcode in ("copy", "transpose", "copy-start", "slice-start"):
        return "copies"
    return "all else"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", action="append", choices=DEVICES, help="default: all")
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    options = parser.parse_args()
    kinds = ("own kernels", "matrix products and what is fused into them", "copies", "all else")
    lines = [
        "# Crossings of main memory by activations in a block\n",
        f"A block of an image tower, {BATCH} x 49 (B/32) or 196 (B/16) tokens of 640 channels, "
        f"compiled by jax {jax.__version__}. In units of one such array in bfloat16, read or "
        "written.\n",
        f"| device | model | WKV | | all | {' | '.join(kinds)} |",
        "|---" * (5 + len(kinds)) + "|",
    ]
    wkvs = {
        "`chunked`": functools.partial(rwkv_kernels.bi_wkv6, implementation="chunked"),
        "kernels": None,
    }
    jobs = itertools.product(options.device or DEVICES, MODELS, wkvs, (False, True))
    for device, model, wkv, backward in tqdm.tqdm(list(jobs), unit="program"):
        config = MODELS[model]().image
        counts = crossings(compiled_block(device, config, wkvs[wkv], backward=backward), config)
        what = "forward + backward" if backward else "forward"
        cells = [device, model, wkv, what, sum(counts.values())]
        cells += [counts.get(kind, 0) for kind in kinds]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    print("\n".join(lines))
    if options.out:
        save(options.out, lines)


if __name__ == "__main__":
    main()
