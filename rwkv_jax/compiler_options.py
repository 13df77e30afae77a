"""How XLA compiles a training step where its own choice is the slower one: on a CPU.

Measured on a small model (width 128, 4 + 1 blocks, 256 pairs, two cores, jax 0.10.2, the programs
taking turns): LLVM at level 1 and fusions by XLA's older emitter take 0.91 of the time of the
defaults, either alone 0.97.
"""

import os

import jax

from rwkv_jax.wkv import platform

_ON_A_CPU = {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": False}


def compiler_options() -> dict[str, bool | int]:
    """`jax.jit`'s, for the platform of the mesh that is set; what XLA_FLAGS says of one stands.

    Empty but on a CPU, and from JAX 0.11 on, which refuses the emitter's name (and where level 1
    was not measured).
    """
    if platform() != "cpu" or jax.__version_info__ >= (0, 11):
        return {}
    said = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in _ON_A_CPU.items() if f"--{name}=" not in said}
