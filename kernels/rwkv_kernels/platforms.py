"""Which device a call is being compiled for, and how it is split: the one place that asks.

It is of the mesh that is set (`jax.set_mesh`), else JAX's default (`jax.default_device`). A mesh
need not be of this machine: a program may be compiled ahead of time for another. Where arrays lie
that were put elsewhere by hand is not seen.
"""

import jax
from jaxtyping import Array


def platform() -> str:
    """One of "cpu", "gpu", "tpu"."""
    device = _of_the_mesh()
    name = _default().platform if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def device_kind() -> str:
    """What its maker calls it, such as "NVIDIA H200", "TPU v5 lite" or "cpu"."""
    device = _of_the_mesh()
    return (_default() if device is None else device).device_kind


def varying(x: Array) -> frozenset[str]:
    """Axes of a `jax.shard_map` that x is known to differ over: none with check_vma=False."""
    found = getattr(jax.typeof(x), "manual_axis_type", None)
    return frozenset() if found is None else found.varying


def unsplit() -> tuple[str, ...]:
    """Axes of the mesh with several devices that no `jax.shard_map` splits here. XLA splits no
    kernel: all of their devices would do all of its work.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ()
    manual = jax.sharding.AxisType.Manual
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind != manual and mesh.shape[name] > 1)


def _default():
    """JAX's default device; by the name of a platform, the first of it."""
    device = jax.default_device.value
    return jax.devices(device)[0] if device is None or isinstance(device, str) else device


def _of_the_mesh():
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh.abstract_device
