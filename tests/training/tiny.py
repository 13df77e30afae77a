"""Runs train.py on the tiny configuration, in a process of its own."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "fixtures" / "tiny_run.py"


def train_command(pictures: Path, workdir: Path, *overrides: str) -> list[str]:
    """The command line of a tiny run."""
    return [
        *(sys.executable, str(ROOT / "train.py"), "--config", str(TINY)),
        *("--workdir", str(workdir), "--data.dataset", f"folder:{pictures}", *overrides),
    ]


def environment(**more: str) -> dict[str, str]:
    """What a subprocess of a checkout that is not installed needs; all share one compile cache."""
    return os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
        "JAX_COMPILATION_CACHE_DIR": str(Path(tempfile.gettempdir()) / "rwkv_jax_test_cache"),
        **more,
    }


def run(command: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment(**more), check=False
    )
