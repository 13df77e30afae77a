"""Which device a call is being compiled for: the one place that asks.

It is of the mesh that is set (`jax.set_mesh`), else JAX's default. A mesh need not be of this
machine: a program may be compiled ahead of time for another.
"""

import jax


def platform() -> str:
    """One of "cpu", "gpu", "tpu"."""
    device = _of_the_mesh()
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def device_kind() -> str:
    """What its maker calls it, such as "NVIDIA H200", "TPU v5 lite" or "cpu"."""
    device = _of_the_mesh()
    return (jax.devices()[0] if device is None else device).device_kind


def _of_the_mesh():
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh.abstract_device
