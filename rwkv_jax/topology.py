"""Devices by the name of a topology, mostly of machines that are not here.

TPU topologies and the H200 need the extra `aot`, which holds their compilers.
"""

import contextlib
import dataclasses
import importlib.util
import re
from collections.abc import Mapping
from typing import Any

import jax

import rwkv_kernels.gpu.topology
import rwkv_kernels.tpu.topology
from rwkv_jax.chips import H200, V5E, V5P, V6E, Chip, chip_of

# The slices that Google rents out (cloud.google.com/tpu/docs, v5e, v6e and v5p), up to 512 chips.
_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4"),
    *("4x4x8", "4x8x8", "8x8x8"),
)
TPUS: Mapping[str, tuple[Chip, tuple[str, ...]]] = {
    "v5e": (V5E, _FLAT),
    "v5p": (V5P, _CUBES),
    "v6e": (V6E, _FLAT),
}
CPUS = re.compile(r"cpu:([1-9]\d{0,3})")


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
        name: as it was asked for.
        devices: described, or real.
        chip: their published peaks; None where there are none, as for CPUs.
        compiler_options: what the compiler needs to be told without a device to try things on.
    """

    name: str
    devices: tuple[Any, ...]
    chip: Chip | None
    compiler_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class TopologyError(ValueError):
    """A topology that nobody knows, or whose compiler is missing."""


def known_topologies() -> str:
    """All names, in one line."""
    tpus = (f"{name}:{'|'.join(shapes)}" for name, (_, shapes) in TPUS.items())
    return f"{', '.join(tpus)}, h200:1, cpu:N, local"


def open_topology(name: str) -> Topology:
    """The devices of a topology such as "v5e:4x4", "h200:1", "cpu:8" or "local".

    To be called before JAX looks for devices: what is compiled for elsewhere, and "cpu:N", needs
    JAX on the CPU of this process.

    Raises:
        TopologyError: an unknown name, no compiler for it, or JAX already runs on other devices.
    """
    generation, _, shape = name.partition(":")
    if name == "local":
        devices = jax.devices()
        return Topology(name, tuple(devices), chip_of(devices[0].device_kind))
    if cpus := CPUS.fullmatch(name):
        return _cpus(name, int(cpus[1]))
    if name == "h200:1":
        _on_cpu_here()
        try:
            devices = list(rwkv_kernels.gpu.topology.mesh().devices.flat)
        except ValueError as error:
            raise TopologyError(_install(name, "jax-cuda13-plugin")) from error
        # Nothing can be tried out, so matrix products are left to cuBLAS as they are.
        options = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": "0"}
        return Topology(name, tuple(devices), H200, options)
    if generation in TPUS and shape in TPUS[generation][1]:
        if importlib.util.find_spec("libtpu") is None:
            raise TopologyError(_install(name, "libtpu"))
        _on_cpu_here()
        devices = list(rwkv_kernels.tpu.topology.mesh(name).devices.flat)
        return Topology(name, tuple(devices), TPUS[generation][0])
    raise TopologyError(f"topology {name!r} is unknown; known are {known_topologies()}")


def _cpus(name: str, count: int) -> Topology:
    _on_cpu_here()
    with contextlib.suppress(RuntimeError):  # JAX has its devices already
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise TopologyError(
            f"topology {name!r}: JAX has {len(devices)} CPU device(s) in this process already; ask"
            " for it in a process of its own"
        )
    return Topology(name, tuple(devices[:count]), None)


def _on_cpu_here() -> None:
    """Keeps JAX from waiting for, or taking, an accelerator that is not compiled for."""
    jax.config.update("jax_platforms", "cpu")


def _install(name: str, package: str) -> str:
    return (
        f"topology {name!r} needs a compiler that comes with {package}, which is not installed:"
        " pip install -c constraints.txt -e '.[aot]', in an environment of its own"
    )
