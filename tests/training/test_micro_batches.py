"""Gradients of micro-batches against those of the whole batch, drop path included."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY

from rwkv_jax.config import load_config
from rwkv_jax.models import abstract_params
from rwkv_jax.models.layers import drop_path
from rwkv_jax.models.params import bind, flat_params, model_graphdef
from rwkv_jax.training.config import LossConfig
from rwkv_jax.training.losses import make_loss
from rwkv_jax.training.micro_batches import (
    in_parts,
    loss_and_gradients,
    micro_batch,
    micro_batch_key,
    whole_batch,
)

COUNT = 4
B = 16


def test_strided_rows_by_hand():
    batch = {"text": jnp.arange(6), "image": jnp.arange(12).reshape(6, 2)}
    second = micro_batch(batch, 3, 1)
    np.testing.assert_array_equal(second["text"], [1, 4])
    np.testing.assert_array_equal(second["image"], [[2, 3], [8, 9]])
    parts = jax.tree.map(lambda *x: jnp.stack(x), *(micro_batch(batch, 3, i) for i in range(3)))
    chex.assert_trees_all_equal(whole_batch(parts), batch)
    chex.assert_trees_all_equal(in_parts(batch, 3), parts)


def test_a_count_that_does_not_divide_is_named():
    batch = {"text": jnp.zeros((6, 2))}
    with pytest.raises(ValueError, match="micro_batches = 4 does not divide a batch of 6"):
        loss_and_gradients(lambda *_: None, lambda *_: None, {}, batch, None, count=4)


def test_every_micro_batch_has_its_own_key():
    keys = jax.vmap(micro_batch_key, (None, 0))(jax.random.key(0), jnp.arange(COUNT))
    assert len(np.unique(jax.random.key_data(keys), axis=0)) == COUNT


def assert_exact(embed, params, batch):
    """Micro-batches against one differentiation through everything, with the same keys."""
    of_features = make_loss(LossConfig())
    key = jax.random.key(2)

    def loss(params, features):
        return of_features(*features, params, jnp.arange(B))

    def at_once(params):
        parts = jax.lax.map(
            lambda i: embed(params, micro_batch(batch, COUNT, i), micro_batch_key(key, i)),
            jnp.arange(COUNT),
        )
        return loss(params, whole_batch(parts))

    whole = jax.jit(jax.value_and_grad(at_once, has_aux=True))(params)
    added_up = jax.jit(
        lambda params: loss_and_gradients(embed, loss, params, batch, key, count=COUNT)
    )(params)
    chex.assert_trees_all_close(added_up[0], whole[0], rtol=1e-6)
    for path, gradient in flat_params(whole[1]).items():
        largest = float(jnp.max(jnp.abs(gradient)))
        assert largest > 0, path
        np.testing.assert_allclose(
            flat_params(added_up[1])[path], gradient, atol=1e-5 * largest, err_msg=path
        )


def random_params(like):
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: 0.3 * random.standard_normal(leaf.shape).astype(np.float32), like
    )


def test_gradients_are_those_of_the_whole_batch():
    number = jax.ShapeDtypeStruct((), jnp.float32)
    matrix = jax.ShapeDtypeStruct((6, 6), jnp.float32)
    params = random_params({"image": matrix, "text": matrix, "logit_scale": number})
    image, text = np.random.default_rng(1).standard_normal((2, B, 1, 6)).astype(np.float32)

    def embed(params, batch, key):
        def tower(name, key):
            x = batch[name]
            x = x + drop_path(jnp.tanh(x @ params[name]), 0.4, key)
            return x[:, 0]

        return tuple(
            tower(name, key)
            for name, key in zip(("image", "text"), jax.random.split(key), strict=True)
        )

    assert_exact(embed, params, {"image": image, "text": text})


@pytest.mark.slow
def test_gradients_of_both_towers_are_those_of_the_whole_batch():
    config = load_config(TINY).model
    config = dataclasses.replace(
        config,
        image=dataclasses.replace(config.image, drop_path=0.4),
        text=dataclasses.replace(config.text, drop_path=0.4),
    )
    graphdef = model_graphdef(config, jnp.float32)
    random = np.random.default_rng(1)
    batch = {
        "image": random.standard_normal((B, 16, 16, 3)).astype(np.float32),
        "text": random.integers(0, 49408, (B, 8)).astype(np.int32),
    }

    def embed(params, batch, key):
        image, text, _ = bind(graphdef, params)(batch["image"], batch["text"], key=key)
        return image, text

    assert_exact(embed, random_params(abstract_params(config)), batch)
