"""Optimizers by name: their first steps by hand, in float64, and what their settings refuse."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rwkv_jax.training.config import OptimizerConfig
from rwkv_jax.training.hyperparameters import OPTIMIZERS
from rwkv_jax.training.optimizer import make_optimizer

STEPS = 1000
START = 1 / 25  # of the peak rate, which the first update takes
RNG = np.random.default_rng(0)
NO_CLIP = 1e9


def first_update(config: OptimizerConfig, params, gradients):
    """Of a compiled optimizer, and the state after it."""
    optimizer = make_optimizer(config, STEPS)
    state = jax.jit(optimizer.init)(params)
    return jax.jit(optimizer.update)(gradients, state, params)


def test_lion_takes_signs():
    params = {"p": jnp.asarray([2.0, -1.0, 3.0])}
    gradients = {"p": jnp.asarray([0.5, -1e-6, 0.0])}
    update, _ = first_update(OptimizerConfig("lion"), params, gradients)
    rate = 1e-4 * START
    wanted = -rate * (np.asarray([1.0, -1.0, 0.0]) + 2.0 * np.asarray([2.0, -1.0, 3.0]))
    chex.assert_trees_all_close(update, {"p": wanted}, rtol=1e-5)


def test_adafactor_divides_by_rows_and_columns():
    g = RNG.normal(size=(2, 128, 130))  # a stack of two layers: each has its own rows and columns
    p = RNG.normal(size=g.shape)
    config = OptimizerConfig("adafactor", clip_norm=NO_CLIP)
    # The second update's rate and the decay of its moments, 1 - 2**-0.8, differ from the first's.
    optimizer = make_optimizer(config, STEPS)
    params, gradients = {"p": jnp.asarray(p, jnp.float32)}, {"p": jnp.asarray(g, jnp.float32)}
    state = optimizer.init(params)
    update, state = jax.jit(optimizer.update)(gradients, state, params)

    rows, columns = np.mean(g**2, axis=2), np.mean(g**2, axis=1)
    estimate = rows[:, :, None] * columns[:, None, :] / np.mean(rows, axis=1)[:, None, None]
    direction = g / np.sqrt(estimate)
    direction /= max(1.0, np.sqrt(np.mean(direction**2)))  # Adafactor's own clipping
    rate = 1e-3 * START
    wanted = -rate * (0.1 * direction + 0.2 * p)  # the momentum's first share is 1 - 0.9
    np.testing.assert_allclose(update["p"], wanted, rtol=2e-4, atol=1e-9)
    shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
    assert shapes == {(), (1,), (2, 128), (2, 130), (2, 128, 130)}  # the last is the momentum


def test_muon_orthogonalises_each_layer_by_itself():
    block = {"receptance": (3, 8, 8), "maa": (3, 5, 8), "decay_w1": (3, 8, 4), "bonus": (3, 2, 4)}
    shapes = {
        "image": {
            "blocks": {
                "spatial_mix": block,
                "channel_mix": {"key": (3, 8, 24), "value": (3, 24, 8), "mix_k": (3, 8)},
            },
            "patch_embed": {"kernel": (2, 2, 3, 8)},
        },
        "text": {"embedding": (16, 8)},
    }

    def normal(shape: tuple[int, ...]) -> jax.Array:
        return jnp.asarray(RNG.normal(size=shape), jnp.float32)

    params, gradients = (
        jax.tree.map(normal, shapes, is_leaf=lambda x: isinstance(x, tuple)) for _ in range(2)
    )
    config = OptimizerConfig("muon", clip_norm=NO_CLIP, weight_decay=0.0)
    updates, state = first_update(config, params, gradients)
    rate = 1e-3 * START

    # Of g = U S V, Newton and Schulz's five steps keep U and V and bring S near 1: rows of another
    # layer, or the stack taken as one matrix, would turn them.
    blocks, its_gradients = updates["image"]["blocks"], gradients["image"]["blocks"]
    matrices = (("spatial_mix", "receptance"), ("channel_mix", "key"), ("channel_mix", "value"))
    for mix, name in matrices:
        for update, g in zip(blocks[mix][name], its_gradients[mix][name], strict=True):
            u, _, v = np.linalg.svd(np.asarray(g, np.float64), full_matrices=False)
            size = -rate * 0.2 * np.sqrt(max(g.shape))
            turned = u.T @ np.asarray(update, np.float64) @ v.T / size
            np.testing.assert_allclose(turned, np.diag(np.diag(turned)), atol=0.02)
            assert (np.diag(turned) > 0.6).all()
            assert (np.diag(turned) < 1.3).all()

    # All else takes Adam's first step, -rate * sign(g).
    for _, name in matrices:
        (blocks["spatial_mix"] | blocks["channel_mix"]).pop(name)
    others = jax.tree.map(lambda u, g: (u, -rate * np.sign(g)), updates, gradients)
    del others["image"]["blocks"]["spatial_mix"]["receptance"]
    del others["image"]["blocks"]["channel_mix"]["key"]
    del others["image"]["blocks"]["channel_mix"]["value"]
    flat = jax.tree.leaves(others)
    assert len(flat) == 2 * 6
    for got, wanted in zip(flat[::2], flat[1::2], strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4)
    # One moment for a matrix, two for the others.
    numbers = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim > 1)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert numbers == 2 * size - 3 * (8 * 8 + 2 * 8 * 24)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_goes_downhill_by_its_own_settings(name):
    target = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
    params = {"w": jnp.zeros((4, 3)), "b": jnp.zeros(3)}
    optimizer = make_optimizer(OptimizerConfig(name, weight_decay=0.0, div_factor=1.0), 200)

    def loss(params):
        return jnp.mean(jnp.square(params["w"] + params["b"] - target))

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    start = (params, optimizer.init(params))
    (after, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, None, 200))(start)
    # 200 steps of half the rate on average lower each entry of 1 by 0.1 (Lion: 0.01).
    assert loss(after) < 0.995 * loss(params)
    chex.assert_tree_all_finite(after)


@functools.cache
def third_update(config: OptimizerConfig) -> list[np.ndarray]:
    """Of a matrix with Adafactor's rows and columns, and of one that is Muon's."""
    rng = np.random.default_rng(0)

    def draw(size: float):
        wide, square = (size * rng.normal(size=shape) for shape in ((128, 130), (1, 8, 8)))
        tree = {"image": {"w": wide, "blocks": {"spatial_mix": {"key": square}}}}
        return jax.tree.map(jnp.float32, tree)

    params, *gradients = map(draw, (1.0, 1e-3, 1e-3, 1e-3))
    optimizer = make_optimizer(config, 100)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
    return jax.tree.leaves(jax.device_get(updates))


@pytest.mark.parametrize(
    ("name", "field"),
    [(name, field.name) for name, of in OPTIMIZERS.items() for field in dataclasses.fields(of)],
)
def test_every_setting_reaches_the_third_update(name, field):
    other = 1e-4 if field == "epsilon" else getattr(OPTIMIZERS[name](), field) / 2
    updates = (third_update(OptimizerConfig(name, **more)) for more in ({}, {field: other}))
    assert any(
        np.abs(before - after).max() > 1e-3 * np.abs(before).max()
        for before, after in zip(*updates, strict=True)
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"name": "adam"}, r"optimizer\.name = 'adam': know \['adamw', 'lion'"),
        (
            {"name": "lion", "epsilon": 1e-8},
            r"optimizer\.epsilon = 1e-08: lion has no such setting",
        ),
        ({"name": "muon", "beta1_peak": 0.8}, r"optimizer\.beta1_peak = 0\.8: muon has no"),
        (
            {"beta1": 0.9},
            r"optimizer\.beta1 = 0\.9: adamw has no such setting, it has .*beta1_base",
        ),
        ({"name": "muon", "momentum": 1.0}, r"optimizer\.momentum = 1\.0: must lie strictly"),
        ({"name": "adafactor", "decay_exponent": -1.0}, r"optimizer\.decay_exponent = -1\.0: must"),
        ({"ema_decay": 1.0}, r"optimizer\.ema_decay = 1\.0: must lie strictly"),
        (
            {"frozen": "logit_scale"},
            r"optimizer\.frozen = 'logit_scale': know image, text and None",
        ),
        ({"learning_rate_multipliers": (("image/", -1.0),)}, r"factor of 'image/' = -1\.0"),
        ({"learning_rate_multipliers": (("(", 1.0),)}, r"'\(' is no regular expression"),
        ({"no_decay": ("[",)}, r"optimizer\.no_decay: '\[' is no regular expression"),
        ({"no_decay": ("bias",), "weight_decay": 0.0}, "weight_decay = 0 decays no parameter"),
    ],
)
def test_settings_that_do_not_go_together_are_named(settings, told):
    with pytest.raises(ValueError, match=told):
        OptimizerConfig(**settings)
