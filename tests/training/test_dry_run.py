"""Runs on paper for the devices of this machine, and what they are refused for."""

import dataclasses
import sys

import pytest
from tiny import TINY

import train
from rwkv_jax.chips import H100, V5E
from rwkv_jax.config import ConfigError, RunConfig, load_config
from rwkv_jax.hlo import Cost, parse, program_cost
from rwkv_jax.topology import TopologyError, open_topology
from rwkv_jax.training.config import MeshConfig
from rwkv_jax.training.dry_run import bound, dry_run, table


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_config(TINY)


def test_a_run_on_this_machine(config: RunConfig):
    said: list[str] = []
    run = dry_run(config, "local", said.append)
    parameters = run.memory.parameters
    assert run.memory.optimizer == pytest.approx(2 * parameters, rel=1e-3)  # two moments
    image = config.data.loader.image_size
    per_pair = 3 * image**2 + 4 * config.data.loader.context_length + 8
    assert run.memory.batch == config.batch_size * per_pair
    assert 0 < run.memory.activations < run.memory.temporaries
    assert run.memory.total > 3 * parameters + run.memory.batch + run.memory.temporaries
    assert run.cost.unknown_loops == ()
    assert not run.cost.collectives
    # What XLA computes beside the model: at these sizes the WKV's levels weigh more.
    assert 0.7 < run.flops.total / run.cost.flops < 1.1
    assert "compiling" in said[0]
    text = table(run)
    for word in ("parameters", "activations", "memory traffic", "no bound"):
        assert word in text


def test_the_bound_is_the_slowest_resource():
    permute = "f32[1024]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}"
    program = f"""HloModule m, num_partitions=2
ENTRY %main (p: f32[1024]) -> f32[1024] {{
  %p = f32[1024]{{0}} parameter(0)
  ROOT %c = {permute}
}}
"""
    cost = program_cost(parse(program))
    over_one_link = bound(cost, V5E)
    assert over_one_link.network == 4096 / 50e9
    assert over_one_link.name == "network"
    assert bound(cost, H100).network == 4096 / 450e9
    busy = dataclasses.replace(cost, passes_flops=1e12)
    assert bound(busy, V5E).seconds == 1e12 / 197e12
    assert bound(busy, V5E).name == "compute"
    assert bound(Cost(memory_bytes=819e9), V5E).seconds == 1.0


@pytest.mark.parametrize("name", ["v5e:3x3", "v7:2x2", "cpu:0", "cpu:", "4x4", ""])
def test_an_unknown_topology_names_the_known_ones(name: str):
    with pytest.raises(TopologyError, match=r"unknown; known are v5e:2x2.*v6e.*cpu:N, local"):
        open_topology(name)


def test_a_mesh_that_does_not_fit_names_the_topology(config: RunConfig):
    other = dataclasses.replace(config, mesh=MeshConfig(data=3, fsdp=7))
    with pytest.raises(ConfigError, match=r"data = 3, fsdp = 7.*does not fit.*topology local"):
        dry_run(other, "local")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dry_run", "--workdir", "run"], "give either --workdir RUN, or --dry_run"),
        ([], "give either --workdir RUN, or --dry_run"),
        (["--workdir", "run", "--topology", "cpu:8"], "--topology goes with --dry_run"),
        (["--dry_run", "--topology", "v9"], "topology 'v9' is unknown"),
        (["--dry_run", "--mesh.data", "5"], "mesh data = 5"),
    ],
)
def test_the_command_refuses_in_one_sentence(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(TINY), *arguments])
    with pytest.raises(SystemExit) as ended:
        train.main()
    said = f"{capsys.readouterr().err} {ended.value.code}"
    assert message in said
    assert "Traceback" not in said
