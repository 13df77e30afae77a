"""Dry runs of a tiny model through the real compilers of a TPU and a Hopper GPU."""

import dataclasses
import sys

import pytest
from tiny import ROOT, TINY, run

from rwkv_jax.chips import V6E
from rwkv_jax.config import load_config
from rwkv_jax.training.dry_run import DoesNotFitError, dry_run, table

pytestmark = pytest.mark.aot


def test_four_chips_sum_the_gradient_and_fit():
    config = load_config(TINY)
    paper = dry_run(config, "v6e:2x2")
    assert paper.topology.chip is V6E
    assert paper.mesh["data"] == 4
    assert paper.fits
    assert paper.cost.unknown_loops == ()
    # Each of four devices sends 3/4 of the gradient twice; also as bfloat16, where it is one.
    assert paper.cost.sent_bytes("all-reduce") >= 2 * 3 / 4 * paper.memory.parameters / 2
    assert paper.bound is not None
    assert 0 < paper.best_mfu < 1
    assert "bound by" in table(paper)


def test_a_batch_too_large_is_said_in_one_sentence():
    config = dataclasses.replace(load_config(TINY), batch_size=2**24)
    with pytest.raises(DoesNotFitError, match=r"a device of v5e:2x2 has too little memory"):
        dry_run(config, "v5e:2x2")


def test_a_gpu_that_is_not_here():
    paper = dry_run(load_config(TINY), "h200:1")
    assert paper.fits
    assert not paper.cost.collectives
    assert paper.cost.flops > 0


@pytest.mark.parametrize("kernels", [pytest.param("auto", marks=pytest.mark.slow), "none"])
def test_kernels_are_left_out_where_the_command_line_says_so(kernels):
    of_towers = [
        f"--model.{tower}.{field}"
        for tower in ("image", "text")
        for field in ("width=128", "heads=2")
    ]
    done = run(
        [
            *(sys.executable, str(ROOT / "train.py"), "--config", str(TINY), *of_towers),
            *("--dry_run", "--topology", "v5e:2x2", "--kernels", kernels),
        ]
    )
    assert done.returncode == 0, done.stderr[-3000:]
    warned = "bi_wkv6 on tpu takes chunked, no kernel (not pallas_tpu: kernels are switched off"
    assert (warned in done.stderr) == (kernels == "none")
    assert ("no kernel" in done.stderr) == (kernels == "none")
