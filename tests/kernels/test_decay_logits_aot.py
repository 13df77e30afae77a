"""`decay_logits` as an H200 gets it: compiled, and played on a CPU, against float64.

Run by `make test-aot`: needs the CUDA plugin's wheels, and no GPU.
"""

import decay_logits_judge
import pytest
from hopper.launch import on_machine

from rwkv_kernels import bench_beside, bench_gpu_static
from rwkv_kernels.gpu import decay_logits, stream

pytestmark = pytest.mark.aot


def test_the_kernel_compiles_and_fits():
    (title,) = (title for title in bench_beside.PARTS if "decays" in title)
    (kernel,) = bench_gpu_static.compiled_beside(title, tokens=256 * 49)
    assert kernel.name == "decay_logits"
    assert not kernel.spill_stores + kernel.spill_loads, kernel
    assert not kernel.serialized, kernel
    assert 65536 // (128 * kernel.registers) >= decay_logits._BLOCKS  # registers of all threads


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("down", [False, True])
def test_played(down, lazy, monkeypatch):
    """The order of warps, and whether copies and products come early or late."""
    monkeypatch.setattr(stream, "_MULTIPROCESSORS", 1)
    given = decay_logits_judge.inputs((2, 150, 128), 64)
    with on_machine(down=down, lazy=lazy) as runs:
        decay_logits_judge.check(given, decay_logits_judge.value_and_gradients())
    (run,) = runs
    assert 228 * 1024 // (run.shared_memory + 1024) >= decay_logits._BLOCKS


@pytest.mark.parametrize(
    ("shape", "rank"), [((1, 1, 64), 32), ((2, 65, 192), 96), ((1, 130, 64), 128)]
)
def test_played_with_other_ranks(shape, rank):
    """What a rank is a multiple of, no interpreter knows."""
    given = decay_logits_judge.inputs(shape, rank)
    with on_machine():
        decay_logits_judge.check(given, decay_logits_judge.value_and_gradients())
