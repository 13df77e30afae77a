"""The Hopper kernels through the real compiler, for an H200, at the real shapes.

Run by `make test-aot`: needs the CUDA plugin's wheels, and no GPU.
"""

import pytest

from rwkv_kernels import bench_gpu_static
from rwkv_kernels.bench_gpu_static import Case

pytestmark = pytest.mark.aot

OF_CI = [
    Case((256, 49, 8, 80)),
    Case((256, 196, 8, 80)),
    Case((8, 1024, 8, 80), causal=True),
    Case((256, 196, 8, 80), dtype="float32"),
]
SLOW = [
    Case((256, 77, 10, 64)),
    Case((8, 1024, 8, 80)),
    Case((1, 16384, 8, 80)),
    Case((256, 49, 8, 80), dtype="float32"),
    Case((256, 77, 10, 64), dtype="float32"),
    Case((1, 16384, 8, 80), dtype="float32"),
    Case((8, 1024, 8, 80), causal=True, dtype="float32"),
]


@pytest.mark.parametrize(
    "case", [*OF_CI, *(pytest.param(x, marks=pytest.mark.slow) for x in SLOW)], ids=str
)
def test_kernels_compile_and_fit(case):
    kernels = {kernel.name: kernel for kernel in bench_gpu_static.compiled(case)}
    T, of_dtype = case.shape[1], "wkv6" if case.dtype == "bfloat16" else "wkv6_float32"
    expected = {f"{of_dtype}_forward", f"{of_dtype}_backward"}
    longest = (256, 128) if case.dtype == "bfloat16" else (64, 64)  # that a block takes
    for of_way, most in zip(("wkv6", "wkv6_both"), longest, strict=True):
        if case.causal or most < T:
            expected.add(f"{of_way}_states")
            expected |= {f"{of_way}_segments"} if case.tiling.sweep_segments > 1 else set()
    assert set(kernels) == expected
    for kernel in kernels.values():
        assert (kernel.spill_stores, kernel.spill_loads) == (0, 0), kernel
        assert not kernel.serialized, kernel


def test_what_ptxas_says_is_read():
    """As ptxas 13 printed it."""
    entry = "ptxas info    : Compiling entry function '{}_mosaic_gpu_kernel' for 'sm_90a'\n"
    spills = "    8 bytes stack frame, {} bytes spill stores, {} bytes spill loads\n"
    used = "ptxas info    : Used {} registers, used 2 barriers, 1 bytes smem\n"
    loss = (
        "ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are "
        "serialized due to insufficient register resources for the wgmma pipeline in the function "
        "'wkv6_backward_mosaic_gpu_kernel'\n"
    )
    text = entry.format("wkv6_forward") + spills.format(0, 0) + used.format(121) + loss
    text += entry.format("wkv6_backward") + spills.format(4, 8) + used.format(255)
    backward, forward = bench_gpu_static.said_by_ptxas(text)
    assert backward == bench_gpu_static.Compiled("wkv6_backward", 255, 4, 8, True)
    assert forward == bench_gpu_static.Compiled("wkv6_forward", 121, 0, 0, False)
