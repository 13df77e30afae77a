"""What kernels hold whatever JAX is set to: 64 bits, derivatives, devices, meshes, dtypes."""

import types

import chex
import float64_loop
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreter import INTERPRETER, TPU_INTERPRETER
from jax.sharding import AbstractMesh, AxisType

from rwkv_kernels import api, associative_scan, bi_wkv6, pallas_gpu, pallas_tpu, platforms, wkv6

GPU = (pallas_gpu, INTERPRETER, (1, 5, 1, 64))
TPU = (pallas_tpu, TPU_INTERPRETER, (1, 5, 1, 8))


def _inputs(shape, dtype=jnp.bfloat16) -> list[jax.Array]:
    x = float64_loop.inputs(*shape, "typical", seed=0)
    r, k, v = (jnp.asarray(x[name], dtype) for name in "rkv")
    return [r, k, v, *(jnp.asarray(x[name], jnp.float32) for name in "wu")]


@pytest.mark.parametrize(("kernels", "interpret", "shape"), [GPU, TPU])
@pytest.mark.parametrize("causal", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_where_jax_has_64_bits_nothing_changes(kernels, interpret, shape, causal):
    given = _inputs(shape)

    def call(*inputs):
        if causal:
            return kernels.wkv6(*inputs, None, interpret=interpret)
        return kernels.bi_wkv6(*inputs, interpret=interpret)

    def everything():
        y, pullback = jax.vjp(call, *given)
        return y, pullback(jax.tree.map(jnp.ones_like, y))

    before = everything()
    with jax.enable_x64(True):
        here = everything()
    chex.assert_trees_all_equal_dtypes(here, before)
    chex.assert_trees_all_equal(here, before)


@pytest.mark.parametrize(("kernels", "interpret", "shape"), [GPU, TPU])
def test_second_derivatives_are_refused_in_words(kernels, interpret, shape):
    r, *others = _inputs(shape)

    def loss(r):
        return jnp.sum(kernels.bi_wkv6(r, *others, interpret=interpret).astype(jnp.float32) ** 2)

    with pytest.raises(NotImplementedError, match="implementation='chunked'"):
        jax.grad(lambda r: jnp.sum(jax.grad(loss)(r).astype(jnp.float32)))(r)


# To JAX 0.11 the least of GPU kernels is a leak.
@pytest.mark.parametrize(
    ("kernels", "interpret", "shape"), [GPU, TPU] if jax.__version_info__ < (0, 11) else [TPU]
)
def test_no_array_is_kept_by_what_jax_keeps(kernels, interpret, shape):
    given = _inputs(shape)
    with jax.check_tracer_leaks():
        jax.jit(lambda *x: kernels.bi_wkv6(*x, interpret=interpret)).trace(*given)


def test_the_default_device_decides(monkeypatch):
    cpu = jax.devices()[0]
    gpu = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H200")
    monkeypatch.setattr(platforms.jax, "devices", lambda name=None: [cpu if name else gpu])
    assert (platforms.platform(), platforms.device_kind()) == ("gpu", "NVIDIA H200")
    for device in (cpu, "cpu"):
        with jax.default_device(device):
            assert (platforms.platform(), platforms.device_kind()) == ("cpu", "cpu")


def test_what_a_mesh_leaves_whole():
    axes = ("data", "one", "tensor")
    assert platforms.unsplit() == ()
    for kind, left in ((AxisType.Auto, ("data", "tensor")), (AxisType.Manual, ("data",))):
        mesh = AbstractMesh((2, 1, 4), axes, axis_types=(AxisType.Auto, AxisType.Auto, kind))
        with jax.sharding.use_abstract_mesh(mesh):
            assert platforms.unsplit() == left


def test_a_kernel_that_no_shard_map_splits_warns(monkeypatch, caplog):
    monkeypatch.setattr(api, "unsplit", lambda: ("data",))
    call = api.Call("bi_wkv6", "tpu", (2, 48, 8, 80), jnp.dtype(jnp.bfloat16), "TPU v5 lite")
    api._choose(call, None)
    assert "which XLA does not split over the mesh's ['data']" in caplog.text
    caplog.clear()
    api._choose(call, "chunked")
    assert not caplog.text


@pytest.mark.parametrize("implementation", ["chunked", "associative_scan", "reference"])
def test_numpy_arrays_of_64_bits_are_taken_as_jax_takes_them(implementation):
    given = [np.asarray(x, np.float64) for x in _inputs((2, 5, 1, 8), jnp.float32)]
    y, state = wkv6(*given, implementation=implementation)
    assert (y.dtype, state.dtype) == (jnp.float32, jnp.float32)
    again, _ = wkv6(*given, initial_state=state, implementation=implementation)
    assert again.shape == y.shape


def test_float64_beside_bfloat16_is_no_kernel_s():
    with jax.enable_x64(True):
        given = _inputs((1, 48, 8, 80))
        call = api._check("wkv6", *given[:3], given[3].astype(jnp.float64), given[4])
    for platform, kind in (("gpu", "NVIDIA H200"), ("tpu", "TPU v5 lite")):
        there = api.dataclasses.replace(call, platform=platform, device_kind=kind)
        assert api.servable(there)[0] == "chunked"
        (why,) = api.IMPLEMENTATIONS[f"pallas_{platform}"].why_not(there)
        assert "an input is float64" in why


@pytest.mark.parametrize(
    ("kind", "dtype", "why"),
    [
        ("TPU v3", "bfloat16", "TPU v3 multiplies no bfloat16"),
        (
            "TPU v5 lite",
            "float16",
            "it takes bfloat16 or float32, and r, k, v together are float16",
        ),
    ],
)
def test_tpus_and_dtypes_that_no_kernel_serves(kind, dtype, why):
    call = api.Call("bi_wkv6", "tpu", (2, 48, 8, 80), jnp.dtype(dtype), kind)
    (reason,) = api.IMPLEMENTATIONS["pallas_tpu"].why_not(call)
    assert why in reason
    assert api.servable(call)[0] == "chunked"


def test_float16_beside_bfloat16_is_float32_to_a_tpu():
    given = _inputs(TPU[2], jnp.float32)
    mixed = [given[0].astype(jnp.float16), given[1].astype(jnp.bfloat16), *given[2:]]
    rounded = [x.astype(jnp.float32) for x in mixed]
    chex.assert_trees_all_equal(
        pallas_tpu.bi_wkv6(*mixed, interpret=TPU_INTERPRETER),
        pallas_tpu.bi_wkv6(*rounded, interpret=TPU_INTERPRETER),
    )


def test_eight_bits_are_refused():
    r, *others = _inputs((1, 5, 1, 8), jnp.float32)
    with pytest.raises(ValueError, match="r must be a floating-point array, got float8_e4m3fn"):
        bi_wkv6(r.astype(jnp.float8_e4m3fn), *others)


def test_associative_scan_takes_numpy():
    given = [np.asarray(x) for x in _inputs((2, 5, 1, 8), jnp.float32)]
    y, _ = associative_scan.wkv6(*given, None)
    chex.assert_trees_all_close(y, wkv6(*given)[0], rtol=1e-4, atol=1e-5)
