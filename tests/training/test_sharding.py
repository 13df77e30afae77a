"""The table of rules, and the same losses whatever the mesh."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from tiny import TINY, run

from rwkv_jax.config import load_config
from rwkv_jax.models import ClipConfig, ImageConfig, abstract_params, rwkv_clip_b16, rwkv_clip_b32
from rwkv_jax.models.params import flat_params
from rwkv_jax.training.config import MeshConfig, OptimizerConfig
from rwkv_jax.training.optimizer import make_optimizer
from rwkv_jax.training.setup import check_parts_fit
from rwkv_jax.training.sharding import (
    check_batch_divides,
    make_mesh,
    param_shardings,
    param_spec,
    state_shardings,
)
from rwkv_jax.training.state import TrainState


def abstract_mesh(data: int, fsdp: int, tensor: int) -> AbstractMesh:
    return AbstractMesh((data, fsdp, tensor), ("data", "fsdp", "tensor"))


EVERY_OPTION = ClipConfig(
    image=ImageConfig(
        with_cls_token=True, output_cls_token=True, layer_scale=0.1, post_norm=True, key_norm=True
    )
)


@pytest.mark.parametrize("config", [rwkv_clip_b32(), rwkv_clip_b16(), EVERY_OPTION])
def test_every_parameter_of_every_model_has_a_rule(config: ClipConfig):
    mesh = abstract_mesh(2, 4, 2)
    for path, leaf in flat_params(abstract_params(config)).items():
        param_spec(path, leaf.shape, mesh)


def test_most_of_the_model_is_split():
    """All but 1% of B/32's numbers lie on one of the fsdp devices alone."""
    mesh = abstract_mesh(1, 8, 1)
    leaves = flat_params(abstract_params(rwkv_clip_b32()))
    whole = sum(
        leaf.size
        for path, leaf in leaves.items()
        if "fsdp" not in param_spec(path, leaf.shape, mesh)
    )
    assert whole < 0.01 * sum(leaf.size for leaf in leaves.values())


@pytest.mark.parametrize(
    ("mix", "into", "out"),
    [
        ("spatial_mix", ("receptance", "key", "value", "gate"), "output"),
        ("channel_mix", ("key",), "value"),
    ],
)
def test_tensor_splits_heads_and_hidden_channels(mix: str, into: tuple[str, ...], out: str):
    def spec(name: str) -> P:
        return param_spec(f"image/blocks/{mix}/{name}", (2, 8, 8), abstract_mesh(1, 2, 2))

    assert {spec(name) for name in into} == {P(None, "fsdp", "tensor")}
    assert spec(out) == P(None, "tensor", "fsdp")


def test_a_parameter_without_a_rule_is_named():
    with pytest.raises(ValueError, match=r"names the parameter image/new_layer \(3, 4\)"):
        param_spec("image/new_layer", (3, 4), abstract_mesh(1, 1, 1))


def test_a_dimension_that_does_not_divide_is_named():
    message = r"text/embedding \(100, 640\): dimension 1 of 640 .* mesh\.fsdp = 7"
    with pytest.raises(ValueError, match=message):
        param_spec("text/embedding", (100, 640), abstract_mesh(1, 7, 1))


def test_optimizer_state_lies_as_its_parameter():
    params = abstract_params(rwkv_clip_b32())
    optimizer = make_optimizer(OptimizerConfig(), steps=10)
    state = TrainState(
        jax.ShapeDtypeStruct((), jnp.int32), params, jax.eval_shape(optimizer.init, params)
    )
    mesh = abstract_mesh(2, 2, 2)
    shardings = state_shardings(state, mesh)
    wanted = jax.tree.leaves(param_shardings(params, mesh))
    by_leaf = jax.tree.leaves(shardings.opt_state)
    split = [sharding for sharding in by_leaf if sharding.spec != P()]
    assert len(split) == 2 * len([sharding for sharding in wanted if sharding.spec != P()])
    assert shardings.step.spec == P()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3, "fsdp": 1, "tensor": 1}, "data = 3, fsdp = 1, tensor = 1 does not fit 1 dev"),
        ({"data": -1, "fsdp": 5, "tensor": 1}, "data = -1, fsdp = 5, tensor = 1 does not fit 1"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices(sizes: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        make_mesh(MeshConfig(**sizes), jax.devices()[:1])


@pytest.mark.parametrize("sizes", [{"data": 0}, {"data": -1, "fsdp": -1}, {"tensor": -2}])
def test_sizes_that_no_mesh_can_have(sizes: dict[str, int]):
    with pytest.raises(ValueError, match=r"mesh\."):
        MeshConfig(**sizes)


def test_a_batch_that_does_not_divide():
    with pytest.raises(ValueError, match=r"batch_size = 12 does not divide over 8 parts"):
        check_batch_divides(12, abstract_mesh(4, 2, 3))


def test_micro_batches_that_do_not_divide_the_pairs_of_a_device():
    config = dataclasses.replace(load_config(TINY), batch_size=8, micro_batches=8)
    told = "micro_batches = 8 does not divide the 4 pairs of each of 2 parts"
    with pytest.raises(ValueError, match=told):
        check_parts_fit(config, abstract_mesh(2, 1, 1))


@pytest.mark.slow  # four programs of eight devices; test_train.py runs one of them
def test_losses_and_gradients_do_not_depend_on_the_mesh():
    script = Path(__file__).with_name("mesh_losses.py")
    done = run([sys.executable, str(script)], XLA_FLAGS="--xla_force_host_platform_device_count=8")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for name, seen in found.items():
        # The third loss comes after two updates, which let the rounding of sums grow.
        np.testing.assert_allclose(seen["losses"], found["one"]["losses"], rtol=2e-5, err_msg=name)
    assert {name: seen["key"] for name, seen in found.items()} == {
        **{"one": 1, "data": 1},  # a copy on every device
        **{"fsdp": 1 / 8, "all": 1 / 4},
    }
    for seen in found.values():
        np.testing.assert_allclose(seen["opt_state"], seen["params"], rtol=1e-3)
