"""The gated head norm as an H200 gets it: compiled, and played on a CPU, against float64.

Run by `make test-aot`: needs the CUDA plugin's wheels, and no GPU.
"""

import head_norm_judge
import pytest
from hopper.launch import on_machine

from rwkv_kernels import bench_beside, bench_gpu_static, head_norm_gpu
from rwkv_kernels.gpu import stream

pytestmark = pytest.mark.aot


def test_kernels_compile_and_fit():
    (title,) = (title for title in bench_beside.PARTS if "heads" in title)
    kernels = bench_gpu_static.compiled_beside(title, tokens=256 * 49)
    assert [kernel.name for kernel in kernels] == ["head_norm_backward", "head_norm_forward"]
    for kernel in kernels:
        assert not kernel.spill_stores + kernel.spill_loads, kernel


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("down", [False, True])
def test_played(down, lazy, monkeypatch):
    """The order of warps, and whether copies come early or late."""
    monkeypatch.setattr(stream, "_MULTIPROCESSORS", 2)
    given = head_norm_judge.inputs((1, 150, 160))
    with on_machine(down=down, lazy=lazy) as runs:
        function = head_norm_judge.value_and_gradients(2, head_norm_gpu.gated_head_norm)
        head_norm_judge.check(2, given, function)
    # As many blocks fit on a multiprocessor as are begun on it.
    fit = {run.name: 228 * 1024 // (run.shared_memory + 1024) for run in runs}
    assert fit["head_norm_forward"] >= 3
    assert fit["head_norm_backward"] >= 2


@pytest.mark.parametrize(("shape", "heads"), [((1, 1, 64), 1), ((2, 65, 128), 2), ((1, 70, 96), 1)])
def test_played_with_other_heads(shape, heads):
    with on_machine():
        function = head_norm_judge.value_and_gradients(heads, head_norm_gpu.gated_head_norm)
        head_norm_judge.check(heads, head_norm_judge.inputs(shape), function)
