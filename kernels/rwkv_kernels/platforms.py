"""Which platform a call is being compiled for: the one place that asks."""

import jax


def platform() -> str:
    """One of "cpu", "gpu", "tpu": of the mesh that is set (`jax.set_mesh`), else of JAX's default.

    A mesh need not be of this machine: a program may be compiled ahead of time for another.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name
