"""What surrounds the WKV, by kernels, on several devices."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_batch_and_channels_are_split_over_a_mesh():
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "kernels_on_devices.py")],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert {kind: len(errors) for kind, errors in found.items()} == {
        "interpolations": 3,
        "norms": 3,
        "decays": 3,
        "wkv": 4,
    }
    for errors in found.values():
        assert max(errors.values()) < 1e-5
