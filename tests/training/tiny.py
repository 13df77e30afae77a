"""Runs train.py on the tiny configuration, in a process of its own."""

import os
import socket
import subprocess
import sys
import tempfile
import time
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
    # The root's conftest.py sets none beside the compilers of TPUs and GPUs, and is not read by
    # stress.py. Quick to compile there, too: LLVM's optimiser is half of a tiny run's time.
    flags = os.environ.get("XLA_FLAGS") or "--xla_backend_optimization_level=0"
    more["XLA_FLAGS"] = f"{flags} {more.get('XLA_FLAGS', '')}"
    return os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
        "JAX_COMPILATION_CACHE_DIR": str(Path(tempfile.gettempdir()) / "rwkv_jax_test_cache"),
        **more,
    }


def run(command: list[str], *, timeout: int = 300, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(**more),
        check=False,
    )


def start_processes(
    command: list[str], count: int, *, second: tuple[str, ...] = (), **more: str
) -> list[subprocess.Popen[str]]:
    """`command` as `count` processes of one run here; process 1 is told `second` besides."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    cluster = ["--coordinator", coordinator, "--processes", str(count)]
    return [
        subprocess.Popen(
            [*command, *cluster, "--process-id", str(index), *(second if index == 1 else ())],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**more),
        )
        for index in range(count)
    ]


def run_processes(
    command: list[str], count: int, **more: str
) -> list[subprocess.CompletedProcess[str]]:
    """As `start_processes`, to their ends."""
    started = start_processes(command, count, **more)
    try:
        return [finish(process) for process in started]
    finally:
        for process in started:
            process.kill()


def finish(process: subprocess.Popen[str], timeout: float = 300) -> subprocess.CompletedProcess:
    """Waits for the end of a started process."""
    out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for_step(process: subprocess.Popen, workdir: Path, step: int) -> None:
    """Returns when the run of `process` has logged `step`."""
    log = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before the step it was to be stopped at"
        if log.exists() and f'"step": {step},' in log.read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached")
