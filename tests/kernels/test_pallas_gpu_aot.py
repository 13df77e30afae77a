"""The Hopper kernels through the real compiler, for an H200, at the real shapes.

Run by `make test-aot`: needs the CUDA plugin's wheels, and no GPU.
"""

import pytest

from rwkv_kernels import bench_gpu_static

pytestmark = pytest.mark.aot

NAMES = {"wkv6_backward", "wkv6_forward", "wkv6_states"}


@pytest.mark.parametrize(
    ("shape", "causal"),
    [
        ((256, 49, 8, 80), False),
        ((256, 196, 8, 80), False),
        pytest.param((256, 77, 10, 64), False, marks=pytest.mark.slow),
        pytest.param((8, 1024, 8, 80), False, marks=pytest.mark.slow),
        pytest.param((1, 16384, 8, 80), False, marks=pytest.mark.slow),
        ((8, 1024, 8, 80), True),
    ],
    ids=str,
)
def test_kernels_compile_and_fit(shape, causal):
    kernels = {kernel.name: kernel for kernel in bench_gpu_static.compiled(shape, causal=causal)}
    B, T, H, N = shape
    stateful = T > 128 or causal
    expected = NAMES if stateful else NAMES - {"wkv6_states"}
    if B * H * (N // 16) < bench_gpu_static.MULTIPROCESSORS:  # blocks of 16 channels do not fill it
        expected = expected | {"wkv6_segments"}
    assert set(kernels) == expected
    for kernel in kernels.values():
        assert (kernel.spill_stores, kernel.spill_loads) == (0, 0), kernel
