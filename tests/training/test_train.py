"""train.py as a person runs it: to the end, killed, stopped, on many devices, with bad input."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import chex
import numpy as np
import pytest
from tiny import TINY, environment, run, train_command, wait_for_step

import train
from rwkv_jax.weights import WeightsError, load_weights, whole_steps

STEPS = 20


def rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir: Path) -> dict[int, float]:
    return {row["step"]: row["train/loss"] for row in rows(workdir) if "train/loss" in row}


def test_a_run_learns_and_leaves_its_record(finished: Path):
    by_step = losses(finished)
    assert sorted(by_step) == list(range(2, STEPS + 1, 2))
    assert by_step[STEPS] < by_step[2]
    assert whole_steps(finished) == [16, 20]
    expected = {"learning_rate", "logit_scale", "images_per_second", "data_wait_share"}
    expected |= {"images_per_second_per_device", "model_flops_per_second", "step_seconds_p99"}
    expected |= {
        f"{what}_norm/{tower}" for what in ("gradient", "update") for tower in ("image", "text")
    }
    assert {f"train/{name}" for name in expected} <= rows(finished)[0].keys()
    last = rows(finished)[-2]  # the last is the evaluation's
    assert 0 < last["run/useful_seconds"] < last["run/wall_seconds"]
    assert list((finished / "profile").rglob("*.xplane.pb"))
    assert list((finished / "tensorboard").iterdir())
    assert (finished / "results.json").exists()
    assert "<html" in (finished / "report.html").read_text(encoding="utf-8")


def test_a_full_disk_and_a_kill_lose_nothing_and_the_run_ends_with_the_same_bits(
    finished: Path, pictures: Path, tmp_path: Path
):
    workdir = tmp_path / "run"
    command = train_command(pictures, workdir)
    # No file may grow beyond 200 kB, which the log and the settings do not need.
    full = run(["prlimit", "--fsize=200000", *command])
    assert full.returncode == 1
    assert "Traceback" not in full.stderr
    said = full.stderr.splitlines()[-1]
    assert said.startswith("train.py: the checkpoint of step 4 could not be written")
    assert "Make room or mend the disk" in said
    assert whole_steps(workdir) == []

    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    wait_for_step(process, workdir, 10)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = whole_steps(workdir)
    assert kept
    assert kept[-1] < STEPS
    again = run(command)
    assert again.returncode == 0, again.stderr[-3000:]
    assert f"going on from step {kept[-1]}" in again.stdout
    chex.assert_trees_all_equal(load_weights(workdir).params, load_weights(finished).params)
    assert losses(workdir) == losses(finished)


def test_sigterm_saves_and_ends_cleanly_and_the_step_is_judged_later(
    pictures: Path, tmp_path: Path
):
    workdir = tmp_path / "run"
    command = train_command(pictures, workdir, "--eval-every", "1", "--steps", "6")
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    wait_for_step(process, workdir, 2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    saved = whole_steps(workdir)[-1]
    assert f"SIGTERM: saved step {saved}" in output
    assert 2 <= saved < 6
    judged = [row["step"] for row in rows(workdir) if "train/loss" not in row]
    assert judged == list(range(1, saved))
    again = run(command)
    assert again.returncode == 0, again.stderr[-3000:]
    judged = [row["step"] for row in rows(workdir) if "train/loss" not in row]
    assert judged == list(range(1, 7))


def test_eight_devices_split_three_ways_give_the_losses_of_one(
    finished: Path, pictures: Path, tmp_path: Path
):
    workdir = tmp_path / "run"
    mesh = ("--mesh.fsdp", "2", "--mesh.tensor", "2")
    as_on_a_gpu = ("--model.image.unroll", "True")  # texts in a loop, as elsewhere
    done = run(
        train_command(pictures, workdir, *mesh, *as_on_a_gpu),
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "8 cpu device(s)" in done.stdout
    eight, one = losses(workdir), losses(finished)
    assert eight.keys() == one.keys()
    np.testing.assert_allclose([eight[s] for s in one], list(one.values()), rtol=1e-5)


def test_a_locked_tower_keeps_the_weights_that_the_run_starts_from(
    finished: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    workdir = tmp_path / "run"
    locked = ("--optimizer.frozen", "image", "--model.image.drop-path", "0")
    start = ("--start-from", str(finished), "--steps", "2", "--seed", "1")
    done = run(train_command(pictures, workdir, *locked, *start))
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = load_weights(finished).params, load_weights(workdir).params
    chex.assert_trees_all_equal(after["image"], before["image"])
    # Two small updates from where the other run ended, not from random numbers.
    moved = np.abs(after["text"]["embedding"] - before["text"]["embedding"])
    assert 0 < moved.max() < 0.02
    # What does not fit is refused before the workdir is made.
    other = ("--model.image.depth", "3", "--start-from", str(finished))
    said = refused(train_command(pictures, tmp_path / "other", *other), monkeypatch, capsys)
    assert "start_from = " in said
    assert "image/blocks/norm1/scale is (2, 16), expected (3, 16)" in said
    assert not (tmp_path / "other").exists()


def test_weights_of_a_run_with_a_flipped_bit_are_refused(finished: Path, tmp_path: Path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    params = workdir / "checkpoints" / str(STEPS) / "params"
    files = [file for file in params.rglob("*") if file.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    message = "params is damaged .* has changed since it was written.* load an older one: .*/16"
    with pytest.raises(WeightsError, match=message):
        load_weights(workdir)
    load_weights(workdir / "checkpoints" / "16")


def refused(command: list[str], monkeypatch: pytest.MonkeyPatch, capsys) -> str:
    """What train.py says, in one line, when it refuses; runs in this process."""
    monkeypatch.setattr(sys, "argv", command[1:])
    with pytest.raises(SystemExit) as exit_:
        train.main()
    assert exit_.value.code not in (None, 0)
    said = capsys.readouterr().err + (exit_.value.code if isinstance(exit_.value.code, str) else "")
    return " ".join(said.replace("│", " ").split())


def test_a_changed_configuration_is_refused_and_nothing_is_touched(
    finished: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    command = train_command(pictures, finished, "--model.image.depth", "3", "--seed", "5")
    said = refused(command, monkeypatch, capsys)
    assert "model.image.depth: 2 -> 3; seed: 0 -> 5" in said
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}


def test_weights_and_a_run_that_lost_its_configuration_are_not_overwritten(
    finished: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    workdir = shutil.copytree(finished, tmp_path / "run")
    (workdir / "config.json").unlink()
    before = (workdir / "model.json").read_bytes()
    said = refused(
        train_command(pictures, workdir, "--model.image.depth", "3"), monkeypatch, capsys
    )
    assert "holds model.json, but no config.json of a run" in said
    assert (workdir / "model.json").read_bytes() == before


def test_other_pictures_than_the_run_began_with_are_named(
    finished: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    workdir = shutil.copytree(finished, tmp_path / "run")
    others = shutil.copytree(pictures, tmp_path / "pictures")
    config = workdir / "config.json"
    config.write_text(config.read_text().replace(str(pictures), str(others)))
    said = refused(train_command(others, workdir), monkeypatch, capsys)
    assert f"folder:{others}: the loader's saved state has " in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workdir", ""), "names no folder"),
        (("--workdir", str(TINY)), "is a file: name a folder"),
        (("--workdir", "x", "--dry_run"), "give either --workdir RUN, or --dry_run"),
    ],
)
def test_what_is_no_workdir(arguments, message, monkeypatch: pytest.MonkeyPatch, capsys):
    command = [sys.executable, "train.py", "--config", str(TINY), *arguments]
    assert message in refused(command, monkeypatch, capsys)


def test_help_names_every_flag(monkeypatch: pytest.MonkeyPatch, capsys):
    for arguments in (["--help"], ["--config", str(TINY), "--help"]):
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        with contextlib.suppress(SystemExit):
            train.main()
        shown = capsys.readouterr().out
        assert {"--workdir", "--dry_run", "--coordinator"} <= set(shown.split())
        assert ("--model.image.depth" in shown) == (len(arguments) > 1)


def test_a_loss_that_is_no_number_stops_the_run(pictures: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    overrides = ("--optimizer.peak-learning-rate", "1e30", "--optimizer.weight-decay", "1e9")
    done = run(train_command(pictures, workdir, "--checkpoint.every", "1", *overrides))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "at step" in done.stderr
    assert "square" in done.stderr or ".png" in done.stderr  # the batch's keys
    last = whole_steps(workdir)[-1]
    good = workdir / "checkpoints" / str(last)
    assert f"the last good checkpoint is {good}" in done.stderr
    # A changed rate is another run: what is advised must not be refused.
    assert f"begin anew in another --workdir, with --start-from {good}" in done.stderr
    chex.assert_tree_all_finite(load_weights(workdir).params)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("--data.dataset", "folder:/nowhere"), "/nowhere"),
        (("--data.split", "tests"), "tests"),
        (("--batch-size", "64"), "batch_size = 64"),
        (("--config", "configs/absent.py"), "configs/absent.py does not exist"),
        (("--no-such-field", "1"), "--no-such-field"),
        (("--optimizer.beta2", "1.5"), "optimizer.beta2 = 1.5"),
        (("--model.text.vocab-size", "100"), "model.text.vocab_size = 100"),
        (("--model.logit-scale", "nan"), "logit_scale = nan"),
        (("--kernels", "some"), "--kernels"),
    ],
)
def test_bad_input_is_one_sentence(
    overrides: tuple[str, str],
    message: str,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
):
    command = train_command(pictures, tmp_path / "run", *overrides)
    assert message in refused(command, monkeypatch, capsys)
    assert not (tmp_path / "run").exists()


def test_a_missing_evaluation_set_is_named_before_training(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    config = tmp_path / "judged_elsewhere.py"
    config.write_text(
        "import dataclasses\n"
        "from rwkv_jax.config import load_config\n"
        "from rwkv_jax.evaluation.config import EvalConfig, RetrievalConfig\n"
        f"config = dataclasses.replace(load_config({str(TINY)!r}), eval=EvalConfig("
        "retrieval=(RetrievalConfig('folder:/nowhere', 'train'),)))\n"
    )
    command = train_command(pictures, tmp_path / "run", "--config", str(config))
    assert "/nowhere" in refused(command, monkeypatch, capsys)
    assert not (tmp_path / "run").exists()
