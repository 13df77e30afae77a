"""A Hopper GPU without one: a mesh that programs can be compiled for, ahead of time.

Needs the extra `aot`: the CUDA plugin holds the compiler, and needs no device for it.
"""

import importlib.util
import os
from pathlib import Path

import jax
import numpy as np
from jax.experimental import topologies

# What XLA has to know of a GPU. Compute capability and limits: CUDA C++ Programming Guide, table
# "Technical Specifications per Compute Capability", 9.0; memory, L2 and clock: NVIDIA's H200 data
# sheet. The names of the fields are those of XLA's GpuTargetConfigProto.
H200 = """
gpu_device_info {
  name: "NVIDIA H200"
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability 9.0a"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: 151397597184
  memory_bandwidth: 4800000000000
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  device_address_bits: 64
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H200"
"""


def mesh(axis: str = "data") -> jax.sharding.Mesh:
    """A mesh of one H200.

    Sets the environment variables that let the CUDA plugin load without cuDNN and a driver, and
    that lead to the compiler that comes with the extra, where they are not set.

    Raises:
      ValueError: no CUDA plugin.
    """
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    try:
        toolkit = importlib.util.find_spec("nvidia.cu13")
    except ModuleNotFoundError:  # of what it lies in
        toolkit = None
    if toolkit is not None and toolkit.submodule_search_locations:
        binaries = str(Path(next(iter(toolkit.submodule_search_locations))) / "bin")
        if binaries not in os.environ["PATH"].split(os.pathsep):
            os.environ["PATH"] = os.pathsep.join((binaries, os.environ["PATH"]))
    try:
        description = topologies.get_topology_desc(
            platform="cuda", topology_name="h200", topology="1x1x1", target_config=H200
        )
    except Exception as error:
        raise ValueError(
            f"cannot compile for an H200 ({error}): the compiler comes with the extra `aot`."
        ) from error
    return jax.sharding.Mesh(np.array(description.devices), (axis,))
