"""`ddlerp` as an H200 gets it: compiled, and played on a CPU, against float64.

Run by `make test-aot`: needs the CUDA plugin's wheels, and no GPU.
"""

import ddlerp_judge
import pytest
from hopper.launch import on_machine

from rwkv_kernels import bench_beside, bench_gpu_static, ddlerp_gpu

pytestmark = pytest.mark.aot


def test_kernels_compile_and_fit():
    (title,) = (title for title in bench_beside.PARTS if "ddlerp" in title)
    kernels = bench_gpu_static.compiled_beside(title, tokens=256 * 49)
    names = [kernel.name for kernel in kernels]
    assert names == ["ddlerp_by_channels", "ddlerp_by_tokens", "ddlerp_forward"]
    for kernel in kernels:
        # By tokens a few numbers; of half as many channels at a time it spills none, and takes 1.3
        # times as long (H200).
        most = 100 if kernel.name == "ddlerp_by_tokens" else 0
        assert max(kernel.spill_stores, kernel.spill_loads) <= most, kernel
        assert not kernel.serialized, kernel


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("down", [False, True])
def test_played(down, lazy):
    """The order of warps, and whether copies and products come early or late."""
    given, gradients = ddlerp_judge.inputs((150, 128), 5, 32)
    with on_machine(down=down, lazy=lazy) as runs:
        function = ddlerp_judge.value_and_gradients(ddlerp_gpu.ddlerp)
        ddlerp_judge.check(given, gradients, function)
    assert len(runs) == 3
    # Two blocks fit on a multiprocessor, and of the forward kernel three.
    by_name = {run.name: 228 * 1024 // (run.shared_memory + 1024) for run in runs}
    assert by_name["ddlerp_forward"] >= 3
    assert min(by_name.values()) >= 2
