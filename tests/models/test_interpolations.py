"""A token's interpolations: by a kernel, or without."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

from rwkv_jax.models.interpolations import interpolations
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
