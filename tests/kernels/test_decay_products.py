"""Products of decays over the tree, against products taken one by one."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv_kernels import decay_products
from rwkv_kernels.plan import plan


@pytest.mark.parametrize("length", [1, 2, 3, 13, 16])
def test_every_pair_lies_across_one_midpoint(length):
    counted = sum((mask.astype(int) for mask in decay_products.pairs(length)), 0)
    chex.assert_trees_all_equal(counted, (1 - np.eye(length, dtype=int)) if length > 1 else 0)


@pytest.mark.parametrize("length", [2, 5, 13])
def test_two_factors_make_what_lies_between(length):
    decay = np.random.default_rng(0).uniform(0.1, 1, (1, length, 1)).astype(np.float32)
    factors = decay_products.to_midpoint(jnp.asarray(decay))
    for mask, factor in zip(decay_products.pairs(length), factors, strict=True):
        for t, s in zip(*np.nonzero(mask), strict=True):
            between = decay[0, min(t, s) + 1 : max(t, s), 0].prod()
            chex.assert_trees_all_close(factor[0, t, 0] * factor[0, s, 0], between, rtol=1e-6)


def test_edges():
    before, after, total = decay_products.to_edges(jnp.array([[[0.5], [0.25], [0.125]]]))
    chex.assert_trees_all_equal(before[0, :, 0], jnp.array([1.0, 0.5, 0.125]))
    chex.assert_trees_all_equal(after[0, :, 0], jnp.array([0.03125, 0.125, 1.0]))
    chex.assert_trees_all_equal(total[0, 0], jnp.float32(0.015625))


def test_gradient_is_the_transpose():
    """Against JAX's own gradient of the logarithms of all products."""
    rng = np.random.default_rng(0)
    log_decay = jnp.asarray(-rng.uniform(0.1, 1, (2, 7, 3)), jnp.float32)
    count = len(decay_products.levels(7)) + 2
    weights = [jnp.asarray(rng.standard_normal((2, 7, 3)), jnp.float32) for _ in range(count)]

    def weighted(log_decay):
        decay = jnp.exp(log_decay)
        before, after, _ = decay_products.to_edges(decay)
        products = [*decay_products.to_midpoint(decay), before, after]
        return sum(jnp.sum(c * jnp.log(p)) for c, p in zip(weights, products, strict=True))

    *levels, before, after = weights
    chex.assert_trees_all_close(
        decay_products.log_decay_gradient(log_decay, levels, [before], [after]),
        jax.grad(weighted)(log_decay),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("T", [1, 16, 17, 49, 77, 96, 97, 196, 257, 1024])
def test_plan_covers_the_sequence_with_little_padding(T):
    how = plan((12, T, 8, 80), jnp.float32, "cpu", causal=False)
    covered = how.chunk.steps * how.chunks
    assert T <= covered < T + 16 + T // 8
    assert 12 % how.group == 0


@pytest.mark.parametrize(
    ("dtype", "platform", "rounded_to"),
    [
        (jnp.float32, "gpu", None), (jnp.bfloat16, "cpu", None),
        (jnp.bfloat16, "gpu", "bfloat16"), (jnp.bfloat16, "tpu", "bfloat16"),
    ],
)  # fmt: skip
def test_plan_rounds_bfloat16_alone_where_there_is_a_unit_for_it(dtype, platform, rounded_to):
    how = plan((2, 49, 8, 64), dtype, platform, causal=False)
    assert how.chunk.operand_dtype == rounded_to


def test_plan_splits_the_batch_on_a_cpu_alone():
    """Groups near 100 kB that divide the batch; small batches and accelerators are not split."""
    groups = {
        (B, platform): plan((B, 16, 8, 64), jnp.float32, platform, causal=False).group
        for B, platform in ((60, "cpu"), (61, "cpu"), (61, "gpu"), (4, "cpu"))
    }
    # 16 * 8 * 64 float32 are 33 kB: 60 makes 20 groups of 3, the prime 61 has only 61 of 1.
    assert groups == {(60, "cpu"): 3, (61, "cpu"): 1, (61, "gpu"): 61, (4, "cpu"): 4}
