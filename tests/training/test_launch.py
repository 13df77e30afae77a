"""The launchers' one entry point, signalled as schedulers do it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import ROOT, environment, train_command, wait_for_step

from rwkv_jax.weights import whole_steps


@pytest.mark.parametrize(
    "send",
    [
        pytest.param(lambda pid: os.kill(pid, signal.SIGTERM), id="to the script, as Kubernetes"),
        pytest.param(lambda pid: os.killpg(pid, signal.SIGTERM), id="to its group, as SLURM"),
    ],
)
def test_a_stopped_run_is_saved_and_asks_for_another_start(
    send: Callable[[int], None], pictures: Path, tmp_path: Path
):
    workdir = tmp_path / "run"
    _, script, *arguments = train_command(pictures, workdir, "--steps", "100000")
    assert Path(script).name == "train.py"
    arguments = [each for each in arguments if each not in ("--workdir", str(workdir))]
    process = subprocess.Popen(
        [str(ROOT / "launch" / "run.sh"), str(workdir), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(PYTHON=sys.executable),
        start_new_session=True,
    )
    wait_for_step(process, workdir, 4)
    send(process.pid)
    out, err = process.communicate(timeout=120)
    assert f"SIGTERM: saved step {whole_steps(workdir)[-1]}" in out
    assert "is saved, but not finished" in err
    assert process.returncode == 75
