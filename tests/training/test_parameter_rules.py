"""Rules by path, locked towers and the average of the parameters, in a real training step."""

import dataclasses
import functools
import json
import math
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import run, train_command

from rwkv_jax.models import ClipConfig, ImageConfig, TextConfig, abstract_params, bind
from rwkv_jax.models.params import flat_params, model_graphdef
from rwkv_jax.training import update
from rwkv_jax.training.checkpoint import CheckpointError, RunCheckpoints
from rwkv_jax.training.config import CheckpointConfig, LossConfig, MeshConfig, OptimizerConfig
from rwkv_jax.training.ema import ema_decay_at, next_ema
from rwkv_jax.training.optimizer import learning_rate_schedule, make_optimizer
from rwkv_jax.training.paths import PathRuleError
from rwkv_jax.training.sharding import make_mesh, state_shardings
from rwkv_jax.training.state import TrainState, begun_with, first_state
from rwkv_jax.training.update import TrainStep, each_once, make_train_step, norms
from rwkv_jax.weights import load_weights, params_sha256

MODEL = ClipConfig(
    ImageConfig(16, 8, width=8, heads=1, depth=2, hidden_rate=1, with_cls_token=True),
    TextConfig(vocab_size=16, context_length=4, width=8, heads=1, depth=2, hidden=8),
)
BATCH = {
    "image": jax.random.randint(jax.random.key(1), (4, 16, 16, 3), 0, 256).astype(jnp.uint8),
    "text": jax.random.randint(jax.random.key(2), (4, 4), 0, 16),
    "concept": -jnp.ones(4, jnp.int32),
    "kind": jnp.zeros(4, jnp.int32),
}


@functools.cache
def started(
    config: OptimizerConfig,
    micro_batches: int = 1,
    *,
    loss: str = "softmax",
    drop_path: float = 0.0,
) -> tuple[TrainStep, TrainState, dict]:
    """A step, the state before it, and a batch, of one device."""
    model = dataclasses.replace(
        MODEL,
        text=dataclasses.replace(MODEL.text, drop_path=drop_path),
        logit_bias=-1.0 if loss == "sigmoid" else None,
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = make_optimizer(config, 100)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype),
        abstract_params(model),
    )
    # Adding 0 to it would show in its bits.
    params["image"]["cls_token"] = -jnp.zeros_like(params["image"]["cls_token"])
    state = first_state(params, optimizer, ema=config.ema_decay is not None)
    shardings = state_shardings(state, mesh)
    step = make_train_step(
        model_graphdef(model, jnp.float32),
        optimizer,
        learning_rate_schedule(config, 100),
        rules=config,
        loss=LossConfig(loss),
        positives="pair",
        micro_batches=micro_batches,
        seed=0,
        mesh=mesh,
        state_sharding=shardings,
    )
    return step, jax.device_put(state, shardings), BATCH


@pytest.fixture(scope="module")
def two_steps():
    """States before, between and after two steps with all of it, one compilation."""
    config = OptimizerConfig(peak_learning_rate=0.1, frozen="image", clip_norm=1e-3, ema_decay=0.15)
    step, first, batch = started(config)
    # The step takes what it is given, and a worker may come back to this module.
    state, states, metrics = jax.tree.map(jnp.copy, first), [first], {}
    for _ in range(2):
        state, metrics = step(state, batch)
        states.append(jax.tree.map(jnp.copy, state))
    return states, metrics


# ------------------------------------------------------------------------------- locked towers


def test_a_locked_tower_stays_bit_equal_and_has_no_state(two_steps):
    (before, _, after), metrics = two_steps

    def bits(params):
        return jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), params["image"])

    assert bits(after.params) == bits(before.params)
    chex.assert_trees_all_equal(after.ema["image"], before.params["image"])
    assert metrics["train/gradient_norm/image"] == metrics["train/update_norm/image"] == 0
    assert metrics["train/gradient_norm/text"] > 0
    # Every single parameter of the text tower moves, but for tokens that the batch does not hold.
    for path, leaf in flat_params(after.params["text"]).items():
        moved = np.mean(np.asarray(leaf != flat_params(before.params["text"])[path]))
        assert moved > 0.5, path
    text = sum(leaf.size for leaf in jax.tree.leaves(before.params["text"]))
    assert sum(leaf.size for leaf in jax.tree.leaves(before.opt_state)) == 2 * (text + 1) + 10


@functools.cache
def traced(config: OptimizerConfig, micro_batches: int = 1) -> jax.stages.Traced:
    step, state, batch = started(config, micro_batches)
    with jax.set_mesh(step.mesh):
        return step.compiled.trace(state, batch)


def test_no_gradient_of_a_locked_tower_is_computed():
    # A tower is three parts of work: forward, gradients of inputs, gradients of parameters.
    def flops(work):
        return work.lower().cost_analysis()["flops"]

    def forward(encode):
        graphdef, params = model_graphdef(MODEL, jnp.float32), abstract_params(MODEL)
        return flops(jax.jit(lambda params: encode(bind(graphdef, params))).trace(params))

    whole = flops(traced(OptimizerConfig()))
    without_image = whole - flops(traced(OptimizerConfig(frozen="image")))
    without_text = whole - flops(traced(OptimizerConfig(frozen="text")))
    image = forward(lambda model: model.encode_image(BATCH["image"] * 1.0))
    assert without_image > 1.8 * image
    assert without_text > 1.8 * forward(lambda model: model.encode_text(BATCH["text"]))

    # Two micro-batches: a loop's body counts once, so half of the batch.
    halves = [flops(traced(OptimizerConfig(frozen=frozen), 2)) for frozen in (None, "image")]
    assert halves[0] - halves[1] > 1.8 * image / 2


def test_a_factor_of_0_freezes_as_a_locked_tower():
    by_rule = traced(OptimizerConfig(learning_rate_multipliers=(("^text/", 0.0),)))
    assert str(by_rule.jaxpr) == str(traced(OptimizerConfig(frozen="text")).jaxpr)


# --------------------------------------------------------------------------------- rules by path

PARAMS = {
    "image": {"norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)}, "kernel": jnp.ones((2, 2))},
    "text": {"embedding": jnp.ones((3, 2))},
}


def update_of(config: OptimizerConfig) -> dict[str, np.ndarray]:
    optimizer = make_optimizer(config, 100)
    gradients = jax.tree.map(jnp.ones_like, PARAMS)
    updates, _ = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)
    return {path: float(np.unique(leaf).item()) for path, leaf in flat_params(updates).items()}


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "muon"])
def test_the_first_pattern_found_sets_the_factor(name):
    plain = update_of(OptimizerConfig(name))
    rules = (("scale$", 3.0), ("^image/", 0.5), ("embedding", 1.0))
    ruled = update_of(OptimizerConfig(name, learning_rate_multipliers=rules))
    factors = {"image/norm/scale": 3, "image/norm/bias": 0.5, "image/kernel": 0.5}
    wanted = {path: value * factors.get(path, 1) for path, value in plain.items()}
    assert ruled == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "muon"])
def test_decay_leaves_alone_what_no_decay_names(name):
    undecayed = update_of(OptimizerConfig(name, weight_decay=0.0))
    decayed = update_of(OptimizerConfig(name))
    ruled = update_of(OptimizerConfig(name, no_decay=(r"/(scale|bias)$", "embedding")))
    assert decayed["image/kernel"] < undecayed["image/kernel"] < 0
    assert ruled == undecayed | {"image/kernel": decayed["image/kernel"]}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"no_decay": ("norms/scale",)},
            "optimizer.no_decay: 'norms/scale' is found in no parameter's path; near ones are"
            " image/norm/scale",
        ),
        (
            {"learning_rate_multipliers": (("^txt/", 0.1),)},
            r"multipliers: '\^txt/' is found in no .*text/embedding",
        ),
        (
            {"learning_rate_multipliers": (("image", 0.1), ("norm", 2.0))},
            "'norm' is found only in paths that an earlier pattern is found in",
        ),
        ({"frozen": "text", "no_decay": ("embedding",)}, "'embedding' is found in no parameter"),
    ],
)
def test_a_pattern_that_reaches_nothing_is_refused(settings, told):
    with pytest.raises(PathRuleError, match=told):
        make_optimizer(OptimizerConfig(**settings), 100).init(PARAMS)


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "muon"])
def test_state_can_be_walked_beside_its_parameters(name):
    """As sharding does: what has a parameter's place in the state has its shape, or is a moment."""
    config = OptimizerConfig(name, frozen="text", no_decay=("bias",))
    params = {"image": {"big": jnp.ones((2, 128, 130)), "bias": jnp.ones(4)}, "text": jnp.ones(3)}
    optimizer = make_optimizer(config, 100)
    seen = []

    def note(leaf, param):
        if not isinstance(leaf, optax.MaskedNode):
            seen.append((leaf.shape, param.shape))
        return leaf

    optax.tree.map_params(
        optimizer,
        note,
        optimizer.init(params),
        params,
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )
    moments = {((2, 128), (2, 128, 130)), ((2, 130), (2, 128, 130))}
    moments |= {((1,), shape) for shape in ((2, 128, 130), (4,))}
    assert {pair for pair in seen if pair[0] != pair[1]} == (
        moments if name == "adafactor" else set()
    )
    assert {pair[1] for pair in seen} == {(2, 128, 130), (4,)}


# ------------------------------------------------------------------------------------- average


def test_average_by_hand():
    # (1 + t) / (10 + t) at 0, 1 and 2 is 0.1, 2/11 and 0.25; 0.2 takes over at the third.
    decays = (0.1, 2 / 11, 0.2)
    at = [float(ema_decay_at(0.2, jnp.asarray(t))) for t in range(3)]
    np.testing.assert_allclose(at, decays, rtol=1e-6)
    mean, wanted = {"p": jnp.asarray(4.0)}, 4.0
    for t, new in enumerate((8.0, 1.0, 5.0)):
        mean = next_ema(mean, {"p": jnp.asarray(new)}, 0.2, jnp.asarray(t))
        wanted = decays[t] * wanted + (1 - decays[t]) * new
    np.testing.assert_allclose(mean["p"], wanted, rtol=1e-6)
    with pytest.raises(ValueError, match="None"):
        next_ema(None, {"p": jnp.asarray(1.0)}, 0.2, jnp.asarray(0))


def abstract(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
    )


def test_average_begins_at_the_weights_that_a_run_begins_with():
    _, state, _ = started(OptimizerConfig(ema_decay=0.9))
    weights = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), state.params)
    begun = begun_with(state, weights, abstract(state))
    chex.assert_trees_all_equal(begun.ema, weights)
    for mean, live in zip(*map(jax.tree.leaves, (begun.ema, begun.params)), strict=True):
        assert mean is not live  # a step takes both as donated


def test_average_follows_the_run_and_comes_back_bit_equal(two_steps, tmp_path):
    (before, between, after), _ = two_steps
    chex.assert_trees_all_equal(before.ema, before.params)
    for was, now, decay in ((before, between, 0.1), (between, after, 0.15)):
        wanted = jax.tree.map(
            lambda mean, new, d=decay: d * np.float64(mean) + (1 - d) * np.float64(new),
            *jax.device_get((was.ema, now.params)),
        )
        chex.assert_trees_all_close(jax.tree.map(np.float64, now.ema), wanted, rtol=1e-5, atol=1e-7)
    assert {leaf.dtype for leaf in jax.tree.leaves(after.ema)} == {jnp.dtype("float32")}

    like = abstract(after)
    without, like_without = (dataclasses.replace(x, ema=None) for x in (after, like))
    with RunCheckpoints(tmp_path / "with", CheckpointConfig()) as checkpoints:
        checkpoints.save(after, {})
        checkpoints.wait()
        chex.assert_trees_all_equal(checkpoints.restore(2, like)[0], after)
        chex.assert_trees_all_equal(checkpoints.restore(2, like_without)[0], without)
    with RunCheckpoints(tmp_path / "without", CheckpointConfig()) as checkpoints:
        checkpoints.save(without, {})
        checkpoints.wait()
        assert not (tmp_path / "without" / "checkpoints" / "2" / "ema").exists()
        with pytest.raises(CheckpointError, match=r"2 holds no average .* optimizer\.ema_decay"):
            checkpoints.restore(2, like)
    assert before.evaluated("ema") is before.ema
    with pytest.raises(ValueError, match=r"optimizer\.ema_decay"):
        without.evaluated("ema")


@pytest.mark.slow  # three runs of train.py
def test_a_locked_run_with_an_average_ends_alike_when_it_is_cut(pictures: Path, tmp_path: Path):
    settings = (
        *(
            "--optimizer.name",
            "muon",
            "--optimizer.frozen",
            "image",
            "--model.image.drop-path",
            "0",
        ),
        *("--optimizer.learning-rate-multipliers", "embedding", "0.5"),
        *("--optimizer.ema-decay", "0.9", "--eval.params", "ema", "--model.text.remat", "dots"),
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = run(train_command(pictures, whole, *settings))
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "20")
    again = run(train_command(pictures, cut, *settings))
    assert again.returncode == 0, again.stderr[-3000:]
    assert "going on from step 16" in again.stdout
    for which in ("live", "ema"):
        ours, theirs = (load_weights(workdir, which).params for workdir in (cut, whole))
        chex.assert_trees_all_equal(ours, theirs)
    results = json.loads((cut / "results.json").read_text("utf-8"))
    assert results["checkpoint"]["parameter_hash"] == params_sha256(load_weights(cut, "ema").params)
    assert results["checkpoint"]["parameter_hash"] != params_sha256(load_weights(cut).params)

    refused = run(train_command(pictures, tmp_path / "new", "--optimizer.no-decay", "norm9"))
    assert refused.returncode == 1
    assert "optimizer.no_decay: 'norm9' is found in no parameter's path" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------- steps in a run

SMALL_STEPS = OptimizerConfig(peak_learning_rate=1e-4, frozen="image")


def after_one(loss: str, **changed) -> tuple[TrainState, dict]:
    """The state and the metrics after a step from a state with these fields."""
    step, state, batch = started(SMALL_STEPS, loss=loss, drop_path=0.5)
    # The step takes what it is given, and is compiled again for what lies elsewhere.
    copies = jax.tree.map(
        lambda new, old: jax.device_put(jnp.copy(new), old.sharding),
        dataclasses.replace(state, **changed),
        state,
    )
    return step(copies, batch)


@pytest.mark.parametrize(
    ("loss", "before", "after"),
    [("softmax", 6.0, math.log(100)), ("softmax", -1.0, 0.0), ("sigmoid", 6.0, 6.0)],
)
def test_only_the_softmax_bounds_its_scale(loss, before, after):
    _, state, _ = started(SMALL_STEPS, loss=loss, drop_path=0.5)
    params = state.params | {"logit_scale": jnp.float32(before)}
    state, metrics = after_one(loss, params=params)
    assert state.params["logit_scale"] == pytest.approx(after, abs=1e-3)
    assert metrics["train/logit_scale"] == pytest.approx(math.exp(state.params["logit_scale"]))
    rate = learning_rate_schedule(SMALL_STEPS, 100)(0)
    assert metrics["train/learning_rate"] == pytest.approx(float(rate))


def test_each_step_drops_other_paths_and_again_the_same():
    first, second, third, again = (
        float(after_one("softmax", step=jnp.asarray(n, jnp.int32))[1]["train/loss"])
        for n in (0, 1, 2, 0)
    )
    assert first == again
    assert len({first, second, third}) == 3


# -------------------------------------------------------------------------------- logged norms


@pytest.mark.parametrize("way", ["cpu", "gpu", "tpu"])
def test_norms_of_updates_are_the_same_on_all_platforms(way, monkeypatch):
    monkeypatch.setattr(update, "platform", lambda: way)
    rng = np.random.default_rng(0)
    before = {name: jnp.asarray(rng.normal(size=(64, 8)), jnp.float32) for name in ("a", "b")}
    updates = {"a": jnp.full((64, 8), 1e-3), "b": jnp.zeros((64, 8))}
    params = optax.apply_updates(before, updates)
    same, state, moved = jax.jit(each_once)(before, params, (jnp.ones(3),), updates)
    chex.assert_trees_all_equal((same, state), (params, (jnp.ones(3),)))
    found = norms("update_norm", moved)
    # 512 of 1e-3; a parameter of 1 to 2 is rounded to 1.2e-7.
    assert found["train/update_norm/a"] == pytest.approx(1e-3 * 512**0.5, rel=1e-4)
    assert found["train/update_norm/b"] == 0
