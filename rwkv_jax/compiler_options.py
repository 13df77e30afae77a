"""How XLA compiles a training step where its own choice is the slower one.

On a CPU, measured on a small model (width 128, 4 + 1 blocks, 256 pairs, two cores, jax 0.10.2, the
programs taking turns): LLVM at level 1 and fusions by XLA's older emitter take 0.91 of the time of
the defaults, either alone 0.97.

On a GPU: what blocks leave for the backward pass would be filled with zeros before, 1.8 of 60 ms
(B/32, 256 pairs, remat "dots", an H200, jax 0.11.2).
"""

import os

import jax

from rwkv_jax.wkv import platform

_ON_A_CPU: dict[str, bool | int] = {
    "xla_backend_optimization_level": 1,
    "xla_cpu_use_fusion_emitters": False,
}
_ON_A_GPU: dict[str, bool | int] = {"xla_gpu_enable_dus_accumulator_zero_init_elimination": True}


def compiler_options() -> dict[str, bool | int]:
    """`jax.jit`'s, for the platform of the mesh that is set; what XLA_FLAGS says of one stands.

    Empty on a TPU; on a CPU from JAX 0.11 on, which refuses the emitter's name (and where level 1
    was not measured); on a GPU from JAX 0.12 on, where nothing was measured.
    """
    by_platform: dict[str, dict[str, bool | int]] = {
        "cpu": _ON_A_CPU if jax.__version_info__ < (0, 11) else {},
        "gpu": _ON_A_GPU if jax.__version_info__ < (0, 12) else {},
    }
    said = os.environ.get("XLA_FLAGS", "")
    options = by_platform.get(platform(), {})
    return {name: value for name, value in options.items() if f"--{name}=" not in said}
