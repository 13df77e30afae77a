"""Dry runs through the real compiler of TPUs: which messages a step sends, and which it must not.

Minutes: run by `make test-slow`.
"""

import dataclasses
from pathlib import Path

import pytest

from rwkv_jax.config import load_config, override
from rwkv_jax.hlo import parse, program_cost
from rwkv_jax.topology import open_topology
from rwkv_jax.training.dry_run import compile_step
from rwkv_jax.training.setup import set_up

pytestmark = [pytest.mark.aot, pytest.mark.slow]

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("name", ["b32", "b16"])
def test_data_parallel_on_sixteen_chips(name: str):
    """Gradients are summed, texts go round the ring, and nothing else is large.

    Blocks are scanned, so two a tower make the program that twelve make.
    """
    config = load_config(CONFIGS / f"rwkv_clip_{name}_yfcc15m.py")
    config = override(config, ["--loss.form", "ring", "--batch-size", "1536"])
    model = dataclasses.replace(
        config.model,
        image=dataclasses.replace(config.model.image, depth=2),
        text=dataclasses.replace(config.model.text, depth=2),
    )
    config = dataclasses.replace(config, model=model)
    topology = open_topology("v5e:4x4")
    setup = set_up(config, topology.devices)
    program = parse(compile_step(setup, topology).as_text() or "")
    cost = program_cost(program)
    assert cost.unknown_loops == ()

    B, D = config.batch_size, config.model.image.width
    features = 4 * B * D  # of the whole batch, in float32
    kinds = {x.kind for x in cost.collectives}
    assert {"all-reduce", "collective-permute"} <= kinds
    # No parameter is gathered; the smallest matrix of a layer is larger than what is.
    gathered = [x.payload for x in cost.collectives if x.kind == "all-gather"]
    assert max(gathered, default=0) < 4 * D * D
    # The whole gradient goes once through an all-reduce, in float32 or bfloat16.
    reduced = sum(x.payload * n for x, n in cost.collectives.items() if x.kind == "all-reduce")
    assert 2 * setup.parameters <= reduced <= 1.05 * 4 * setup.parameters
    # Texts take 15 hops of a sixteenth, forward and backward, and their gradients go along.
    assert cost.sent_bytes("collective-permute") <= 4 * features
    # No device ever has all scores, nor all scores of its own images at once.
    shapes = {
        array.dimensions
        for where in program.computations.values()
        for x in where.instructions
        for array in x.arrays
    }
    assert not [shape for shape in shapes if shape.count(B) >= 2]
    assert not [shape for shape in shapes if B in shape and B // 16 in shape]
