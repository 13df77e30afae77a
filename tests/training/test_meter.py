"""Rates and shares of hand-made durations, and what a log hands on to the next start."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from rwkv_jax.chips import CHIPS, V5E, chip_of
from rwkv_jax.data.skipped import SkippedRecords
from rwkv_jax.training import watch
from rwkv_jax.training.meter import Meter, Past, Work, percentile
from rwkv_jax.training.metrics_log import MetricsLog, SilentLog


def test_a_window_by_hand():
    """Eight images a step on two devices; ten steps of 1, 2, ..., 10 s, half a second waiting."""
    meter = Meter(Work(images=8, flops=197e12, devices=2, chip=V5E), Past(started=100.0))
    meter.step(60.0, 1.0)  # compiles
    for seconds in range(1, 11):
        meter.step(float(seconds), 0.5)
    meter.saved(3.0)
    values = meter.values(now=100.0 + 125.0)
    assert values == pytest.approx(
        {
            "train/images_per_second": 8 * 10 / 55,
            "train/images_per_second_per_device": 4 * 10 / 55,
            "train/model_flops_per_second": 197e12 * 10 / 55,
            "train/mfu": 10 / 55 / 2,
            "train/step_seconds": 5.5,
            "train/step_seconds_p50": 5.0,
            "train/step_seconds_p90": 9.0,
            "train/step_seconds_p99": 10.0,
            "train/data_wait_share": 5 / 55,
            "run/first_step_seconds": 60.0,
            "run/checkpoint_seconds": 3.0,
            "run/useful_seconds": 50.0,
            "run/wall_seconds": 125.0,
            "run/goodput": 0.4,
        }
    )


def test_the_next_window_begins_empty_and_an_unknown_chip_has_no_mfu():
    meter = Meter(Work(images=4, flops=1e9, devices=1, chip=None), Past(0.0, useful_seconds=7.0))
    meter.step(30.0, 0.0)
    assert meter.values(now=50.0)["train/step_seconds"] == 30.0  # there is nothing else in it
    meter.step(2.0, 0.0)
    values = meter.values(now=60.0)
    assert values["train/step_seconds_p99"] == 2.0
    assert values["run/checkpoint_seconds"] == 0.0
    assert values["run/goodput"] == 9.0 / 60.0
    assert values["train/model_flops_per_second"] == 5e8
    assert not {"train/mfu", "run/first_step_seconds"} & values.keys()


def test_percentiles_are_values_that_occurred():
    assert [percentile([3.0, 1.0, 2.0], share) for share in (1, 50, 90, 99)] == [1.0, 2.0, 3.0, 3.0]


def test_goodput_survives_a_restart_and_pays_for_lost_steps(tmp_path: Path):
    """Steps up to 20 were done, but the checkpoint is of step 10: half is lost, time is not."""
    rows = [
        {"step": step, "time": 1000.0 + wall, "run/wall_seconds": wall, "run/useful_seconds": use}
        for step, wall, use in ((10, 40.0, 30.0), (20, 70.0, 60.0))
    ]
    log = tmp_path / "metrics.jsonl"
    damaged = b'5\n{"time": 1}\n\xff\n{"step": 3'
    log.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode() + damaged)
    opened = MetricsLog(tmp_path, first_step=10, total_steps=30)
    opened.close()
    assert opened.past == Past(started=1000.0, useful_seconds=30.0)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [10]


def test_chips_by_the_names_that_jax_gives():
    assert chip_of("TPU v5 lite") is V5E
    assert chip_of("cpu") is None
    for chip in CHIPS:
        assert chip.source
        # FLOPs a byte of memory lie in the hundreds for all of them: a misplaced power would not
        assert 100 < chip.flops / chip.memory_bandwidth < 650, chip


def watch_with(log) -> watch.Watch:
    work = Work(images=8, flops=1.0, devices=1, chip=None)
    return watch.Watch(log, log_every=1, work=work, checkpoints=Path())


LOADER_STATE = {"seen": 8, "skipped": SkippedRecords().to_dict()}


def test_a_gradient_that_is_not_finite_stops_the_run():
    watched = watch_with(SilentLog())
    watched.step(1, {"train/loss": 1.0, "train/gradient_norm": math.inf}, [], 0.0, LOADER_STATE)
    with pytest.raises(watch.NonFiniteLossError, match="train/gradient_norm is inf at step 1"):
        watched.flush()


def test_a_step_waits_for_the_batch_behind_it(monkeypatch: pytest.MonkeyPatch):
    """Its end is seen when the next batch is there: that one's wait lies in its time, not its own.

    Batches are waited for 5, 9 and 1 seconds; a step takes 1 second more.
    """
    clock, written = [0.0], []
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    log = SimpleNamespace(
        past=Past(0.0), write=lambda step, values: written.append(values), show=lambda *_: None
    )
    of_step = {"train/loss": 1.0, "train/gradient_norm": 1.0}
    watched = watch_with(log)
    for number, waited in enumerate((5.0, 9.0, 1.0), 1):
        clock[0] += waited + 1.0
        watched.step(number, of_step, [], waited, LOADER_STATE)
    clock[0] += 1.0
    watched.flush()
    shares = [values["train/data_wait_share"] for values in written]
    # The first from the start: 5 + 9 of 16 seconds; the second the third's 1 of 2; the last none.
    assert shares == pytest.approx([14 / 16, 1 / 2, 0.0])
    assert [values["run/useful_seconds"] for values in written] == pytest.approx([0.0, 1.0, 2.0])
