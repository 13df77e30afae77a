"""The suite on four devices: batches that are spread over them give the same answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_sets import write_sets

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_four_devices_find_what_one_finds(run_folder, tmp_path):
    write_sets(tmp_path / "sets")
    found = []
    for devices in (1, 4):
        out = tmp_path / f"on_{devices}"
        flags = f"--xla_force_host_platform_device_count={devices}"
        command = [sys.executable, ROOT / "eval.py", "--checkpoint", run_folder, "--out", out]
        command += ["--suite", "paper", "--data-dir", tmp_path / "sets"]
        paths = os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))
        environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": paths}
        done = subprocess.run(
            list(map(str, command)), env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        measured = json.loads((out / "results.json").read_text())["measured"]
        found.append({name: each["figures"] for name, each in measured.items()})
    one, four = found
    assert one.keys() == four.keys()
    assert len(one) == 5
    for name, figures in one.items():
        # a picture more or less of 12 to 20, where two answers are as near as rounding
        assert figures == pytest.approx(four[name], abs=0.1), name
