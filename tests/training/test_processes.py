"""One run on several processes of this machine, as on several hosts (Gloo between them)."""

import json
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import finish, run, run_processes, start_processes, train_command, wait_for_step

from rwkv_jax.distributed import Cluster, ProcessesError, has_lost_others
from rwkv_jax.weights import whole_steps


def losses(workdir: Path) -> dict[int, float]:
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def assert_same_losses(workdir: Path, finished: Path) -> None:
    several, one = losses(workdir), losses(finished)
    assert several.keys() == one.keys()
    # Sums run in another order over several processes, and twenty updates let that grow.
    np.testing.assert_allclose([several[s] for s in one], list(one.values()), rtol=1e-5)


def test_two_processes_give_the_losses_of_one(finished: Path, pictures: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    done = run_processes(train_command(pictures, workdir), 2)
    assert [each.returncode for each in done] == [0, 0], done[0].stderr[-2000:]
    assert "2 cpu device(s) of 2 process(es)" in done[0].stdout
    assert "step" not in done[1].stdout  # the first alone writes
    assert_same_losses(workdir, finished)
    assert (workdir / "results.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("again", [1, 4])
def test_saved_from_two_processes_goes_on_in_one_and_in_four(
    again: int, finished: Path, pictures: Path, tmp_path: Path
):
    """Also sharded: parameters split over two processes by fsdp come back on one and on four."""
    workdir = tmp_path / "run"
    command = train_command(pictures, workdir, "--mesh.data", "1", "--mesh.fsdp", "-1")
    started = start_processes(command, 2)
    wait_for_step(started[0], workdir, 10)
    for process in started:
        process.kill()
        process.wait()
    saved = whole_steps(workdir)[-1]
    done = run(command) if again == 1 else run_processes(command, again)[0]
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"going on from step {saved}" in done.stdout
    assert_same_losses(workdir, finished)


@pytest.mark.slow
def test_the_end_of_one_process_ends_the_others(pictures: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    command = train_command(pictures, workdir, "--steps", "100000")
    first, second = start_processes(command, 2)
    wait_for_step(first, workdir, 4)
    second.kill()
    killed = time.monotonic()
    done = finish(first, timeout=60)
    assert time.monotonic() - killed < 60
    assert done.returncode != 0
    assert "another process of this run has ended" in done.stderr
    assert "start all processes again with the same --workdir" in done.stderr


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all_at_the_same_step(pictures: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    command = train_command(pictures, workdir, "--steps", "100000")
    first, second = start_processes(command, 2)
    wait_for_step(first, workdir, 4)
    second.terminate()
    done = [finish(process, timeout=120) for process in (first, second)]
    assert [each.returncode for each in done] == [0, 0], done[0].stderr[-2000:]
    assert f"SIGTERM: saved step {whole_steps(workdir)[-1]}" in done[0].stdout


@pytest.mark.slow
def test_processes_that_disagree_are_refused(pictures: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    started = start_processes(train_command(pictures, workdir), 2, second=("--seed", "7"))
    for done in map(finish, started):
        assert done.returncode == 1
        assert "configuration of process 1 differ(s) from process 0's" in done.stderr
        assert "Traceback" not in done.stderr
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        # as met when a process was killed while another saved
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), True),
        (RuntimeError("UNAVAILABLE: failed to connect to all addresses"), True),
        # TensorStore's, of a locked file on NFS; Python's, of a folder with such a name
        (ValueError("UNAVAILABLE: Error writing local file [os_error_code='11']"), False),
        (OSError(28, "No space left on device", "runs/barrier/meta"), False),
        (ValueError("Error writing local file: File too large [os_error_code='27']"), False),
    ],
)
def test_a_lost_process_is_told_from_a_full_disk(
    error: Exception, lost: bool, monkeypatch: pytest.MonkeyPatch
):
    assert not has_lost_others(error)  # alone
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert has_lost_others(error) is lost


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coordinator": "a:1", "processes": 2}, "go together, got a:1, 2 and None"),
        ({"coordinator": "a:1", "processes": 2, "process_id": 2}, "--process-id 2 .* --processes"),
    ],
)
def test_half_a_cluster_is_refused(arguments: dict, message: str):
    with pytest.raises(ProcessesError, match=message):
        Cluster(**arguments)
