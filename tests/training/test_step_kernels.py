"""Kernels of a step, by kind."""

import jax.numpy as jnp
import pytest

from rwkv_jax.bench_step_kernels import by_kind, by_name, recorded

# As an H200's profiler names them.
NAMES = {
    "wkv6_backward_mosaic_gpu_kernel": "the WKV",
    "ddlerp_by_tokens_mosaic_gpu_kernel": "interpolations",
    "nvjet_sm90_tst_128x160_64x5_1x1_h_bz_TNT": "matrix products",
    "gemm_fusion_dot_general_104": "matrix products",
    "sm90_xmma_gemm_f32f32_tf32f32_f32_nt_n_tilesize128x128x32_cublas": "matrix products",
    "void cutlass::Kernel2<cutlass_80_tensorop_s1688gemm_256x64_16x4_nt_align4>": "matrix products",
    "memcpy128": "copies",
    "Memset 0": "copies",
    "loop_dynamic_update_slice_fusion_60": "copies",
    "input_add_reduce_fusion_9": "sums, and what is made along with them",
    "loop_add_fusion_15": "element by element",
    "loop_dynamic_slice_multiply_fusion_1": "element by element",
    "wrapped_multiply": "element by element",
    "RngBitGenerator": "all else",
}


@pytest.mark.parametrize(("name", "kind"), NAMES.items())
def test_kinds(name, kind):
    assert list(by_kind([(name, 1.0)], 1)) == [kind]


def test_means_of_steps_the_longest_first():
    events = [("memcpy128", 1e6), ("memcpy128", 3e6), ("wkv6_forward", 6e6), ("Memset 0", 1e6)]
    assert by_kind(events, 2) == {"the WKV": (0.5, 3.0), "copies": (1.5, 2.5)}
    assert list(by_name(events, 2)) == ["wkv6_forward", "memcpy128", "Memset 0"]


def test_without_a_gpu_there_is_nothing_to_record():
    with pytest.raises(RuntimeError, match="no kernel on 'cpu': it takes a GPU"):
        recorded(lambda: jnp.ones(3).block_until_ready())
