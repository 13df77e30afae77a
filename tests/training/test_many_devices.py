"""Rings and micro-batches over forced host devices, in one process of its own."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import run

RINGS = ("2", "4, and tensor 2", "8")


@pytest.fixture(scope="module")
def found() -> dict:
    done = run(
        [sys.executable, str(Path(__file__).parent / "on_many_devices.py")],
        XLA_FLAGS="--xla_force_host_platform_device_count=64",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("ring", RINGS)
def test_a_ring_gives_the_loss_and_the_gradients_of_the_full_form(found: dict, ring: str):
    loss, gradients, loss_to_float64 = found["agreement"][ring]
    assert loss < 1e-6
    assert gradients < 1e-5
    assert loss_to_float64 < 1e-6


def test_a_rings_memory_does_not_grow_with_the_devices(found: dict):
    few, many = found["ring_bytes"]["8"], found["ring_bytes"]["64"]
    assert many < 1.05 * few
    assert few < 64 * 8 * 64 * 4  # less than a device's rows of the logits at 8 devices


def test_a_ring_gathers_nothing(found: dict):
    assert found["ring_collectives"] == ["all-reduce", "collective-permute"]


def test_micro_batches_stay_where_the_batch_is(found: dict):
    assert found["micro_batch_collectives"] == ["all-reduce"]


@pytest.mark.slow
def test_a_sigmoid_run_is_the_same_on_every_mesh_in_every_form():
    done = run(
        [sys.executable, str(Path(__file__).parent / "loss_meshes.py")],
        timeout=1800,
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    runs = json.loads(done.stdout)
    reference = runs["one device, full"]["metrics"]
    for name, found in runs.items():
        np.testing.assert_allclose(found["metrics"], reference, rtol=1e-4, err_msg=name)
    collectives = runs["data, ring, micro-batches"]["collectives"]
    assert collectives == ["all-reduce", "collective-permute"]  # no batch, no parameter gathered
