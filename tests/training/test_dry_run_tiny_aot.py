"""Dry runs of a tiny model through the real compilers of a TPU and a Hopper GPU."""

import dataclasses

import pytest
from tiny import TINY

from rwkv_jax.chips import V6E
from rwkv_jax.config import load_config
from rwkv_jax.training.dry_run import DoesNotFitError, dry_run, table

pytestmark = pytest.mark.aot


def test_four_chips_sum_the_gradient_and_fit():
    config = load_config(TINY)
    run = dry_run(config, "v6e:2x2")
    assert run.topology.chip is V6E
    assert run.mesh["data"] == 4
    assert run.fits
    assert run.cost.unknown_loops == ()
    # Each of four devices sends 3/4 of the gradient twice; also as bfloat16, where it is one.
    assert run.cost.sent_bytes("all-reduce") >= 2 * 3 / 4 * run.memory.parameters / 2
    assert run.bound is not None
    assert 0 < run.best_mfu < 1
    assert "bound by" in table(run)


def test_a_batch_too_large_is_said_in_one_sentence():
    config = dataclasses.replace(load_config(TINY), batch_size=2**24)
    with pytest.raises(DoesNotFitError, match=r"a device of v5e:2x2 has too little memory"):
        dry_run(config, "v5e:2x2")


def test_a_gpu_that_is_not_here():
    run = dry_run(load_config(TINY), "h200:1")
    assert run.fits
    assert not run.cost.collectives
    assert run.cost.flops > 0
