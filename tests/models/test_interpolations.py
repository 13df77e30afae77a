"""A token's interpolations: by a kernel, or without."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

from rwkv_jax.mesh import AXES
from rwkv_jax.models.interpolations import interpolations
from rwkv_jax.wkv import ddlerp_kernel
from rwkv_kernels import ddlerp, ddlerp_gpu


def test_the_kernel_and_the_formula_agree(monkeypatch):
    rng = np.random.default_rng(0)
    shapes = ((2, 9, 64), (2, 9, 64), (2, 9, 64), (2, 64), (2, 32, 64))
    given = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]

    def both(dtype):
        def call(x, xx, z, maa, up):
            return interpolations(*(a.astype(dtype) for a in (x, xx, z)), maa, up)

        found, pullback = jax.vjp(call, *given)
        return [*found, *pullback(tuple(jnp.ones_like(y) for y in found))]

    exact = both(jnp.float32)
    zeros = InterpretGPUParams(out_of_bounds_reads="uninitialized", uninitialized_memory="zero")
    kernel = functools.partial(ddlerp_gpu.ddlerp, interpret=zeros)
    calls = []
    monkeypatch.setattr(ddlerp, "unservable", lambda *_: ())
    monkeypatch.setattr(ddlerp, "ddlerp", lambda *x: calls.append(x) or kernel(*x))
    rounded = both(jnp.bfloat16)
    assert len(calls) == 1
    for x, y in zip(rounded, exact, strict=True):
        x, y = (np.asarray(a, np.float64) for a in (x, y))
        assert np.linalg.norm(x - y) < 1e-2 * np.linalg.norm(y)


def test_no_kernel_where_a_devices_part_does_not_suit():
    device = jax.sharding.AbstractDevice("NVIDIA H200", None, "gpu")
    auto = (jax.sharding.AxisType.Auto,) * len(AXES)

    def served(*sizes, D=640):
        mesh = jax.sharding.AbstractMesh(sizes, AXES, axis_types=auto, abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            return ddlerp_kernel((4, 49, D), jnp.bfloat16, (5, 32, D)) is not None

    assert served(1, 1, 1)
    assert served(2, 2, 2)
    assert not served(1, 1, 4)  # 160 channels
    assert not served(1, 1, 3, D=385)  # 3 * 128, and one more
    assert not served(3, 1, 1)  # of 4 samples
