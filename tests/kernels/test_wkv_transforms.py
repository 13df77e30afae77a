"""The WKV under JAX's transformations, and what its compiled form is held to."""

import functools

import chex
import float64_loop
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv_kernels import bi_wkv6, shapes, wkv6
from rwkv_kernels.bench import temporary_bytes


def _arguments(B=2, T=20, H=2, N=8, dtype=jnp.float32, seed=0):
    x = float64_loop.inputs(B, T, H, N, "mixed", seed)
    return [jnp.asarray(x[name], dtype) for name in "rkvwu"]


def test_vmap_is_a_loop():
    stacks = [jnp.stack(x) for x in zip(*(_arguments(seed=s) for s in (0, 1)), strict=True)]

    def loss(*arguments):
        y, state = wkv6(*arguments)
        return jnp.sum(y**2) + jnp.sum(state**2)

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4)))
    looped = [gradient(*(x[i] for x in stacks)) for i in (0, 1)]
    chex.assert_trees_all_close(
        jax.jit(jax.vmap(gradient))(*stacks),
        tuple(jnp.stack(x) for x in zip(*looped, strict=True)),
        rtol=1e-4,
        atol=1e-4,
    )


def test_remat_inside_scan_is_two_layers():
    """As the models use it: rematerialised blocks, scanned over depth."""
    r, k, v, w, u = _arguments()
    scales = jnp.array([0.1, 0.2])

    def layer(x, scale):
        return x + scale * bi_wkv6(r, k, x, w, u), None

    @jax.jit
    def scanned(v, scales):
        return jnp.sum(jax.lax.scan(jax.checkpoint(layer), v, scales)[0] ** 2)

    @jax.jit
    def unrolled(v, scales):
        return jnp.sum(layer(layer(v, scales[0])[0], scales[1])[0] ** 2)

    results = [jax.value_and_grad(f, argnums=(0, 1))(v, scales) for f in (scanned, unrolled)]
    chex.assert_trees_all_close(*results, rtol=1e-4)


def test_gradient_of_a_sum_in_bfloat16():
    arguments = _arguments(dtype=jnp.bfloat16)
    arguments[3] = arguments[3].astype(jnp.float32)

    def total(*arguments):
        return jnp.sum(bi_wkv6(*arguments).astype(jnp.float32))

    gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3, 4)))(*arguments)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradients, tuple(arguments))
    chex.assert_tree_all_finite(gradients)
    in_float32 = [np.asarray(x, np.float32) for x in arguments]
    _, judged = float64_loop.bi_wkv(*in_float32, g=np.ones(arguments[0].shape))
    for got, want in zip(gradients, judged, strict=True):
        assert np.abs(np.asarray(got, np.float64) - want).max() < 4e-3 * np.abs(want).max()


@pytest.mark.parametrize("shape", [shapes.IMAGE_B32, shapes.LONG], ids=lambda shape: shape.name)
def test_temporary_memory(shape):
    """Forward and backward take under 1/20 of what differentiating the scan takes."""
    takes = {name: temporary_bytes(name, shape) for name in ("chunked", "reference")}
    assert takes["chunked"] * 20 < takes["reference"]


def test_only_the_inputs_are_saved():
    arguments = _arguments(B=1, T=100)
    _, pullback = jax.vjp(functools.partial(bi_wkv6, implementation="chunked"), *arguments)
    saved = sum(x.size for x in jax.tree.leaves(pullback) if hasattr(x, "size"))
    assert saved <= sum(x.size for x in arguments)
