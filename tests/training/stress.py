"""Kills training with SIGKILL again and again, and compares its end with a run never killed.

python tests/training/stress.py --kills 30 --out docs/stress.md      (what `make stress` runs)

Moments: before the first step, a random while after it, as soon as a checkpoint is being written,
and during an evaluation. What must be equal, to the last bit: parameters, optimizer state, the
data's position, and every logged loss, norm and figure. Exit status 1 says that something differs.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from tiny import ROOT, environment

from conftest import write_pictures
from rwkv_jax.config import load_config, override
from rwkv_jax.training.checkpoint import RunCheckpoints
from rwkv_jax.training.setup import set_up
from rwkv_jax.training.state import TrainState

STEPS = 1500  # thirty kills get a run about a thousand steps far
CONFIG = """
import dataclasses
from rwkv_jax.config import load_config
from rwkv_jax.evaluation.config import EvalConfig, RetrievalConfig
from rwkv_jax.training.config import CheckpointConfig
config = load_config({tiny!r})
config = dataclasses.replace(
    config, steps={steps}, log_every=1, eval_every=150,
    checkpoint=CheckpointConfig(every=10, keep=2),
    data=dataclasses.replace(config.data, dataset={data!r}),
    eval=EvalConfig(retrieval=(RetrievalConfig({data!r}, "train"),), batch_size=8),
)
"""
# Figures of a row that depend on the clock or the machine, not on the run.
OF_THE_CLOCK = ("seconds", "per_second", "wait_share", "time", "goodput", "mfu", "memory")
LIMIT_SECONDS = 180  # for one start to reach its moment


def start(config: Path, workdir: Path, output: Path) -> subprocess.Popen:
    with output.open("w") as file:
        return subprocess.Popen(
            [
                *(sys.executable, "-u", str(ROOT / "train.py")),
                *("--config", str(config), "--workdir", str(workdir)),
            ],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(),
        )


def wait_until(process: subprocess.Popen, happens: Callable[[], bool]) -> bool:
    """Whether it happened while the process ran."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if happens():
            return True
        time.sleep(0.002)
    return False


def kill_at(moment: str, process: subprocess.Popen, workdir: Path, output: Path) -> bool:
    """Waits for the moment and kills; False where the run ended before."""
    rows_before, saved_before = count_rows(workdir), newest_saved(workdir)

    def stepped() -> bool:
        return count_rows(workdir) != rows_before and "step " in output.read_text()

    def writing() -> bool:
        # The second since this start: with the first, the run would never get further.
        if not stepped() or newest_saved(workdir) <= saved_before:
            return False
        return any("tmp" in name for name in os.listdir(workdir / "checkpoints"))

    def evaluating() -> bool:
        return "retrieval" in output.read_text()

    reached = {
        "filling the loader": lambda: "parameters," in output.read_text(),
        "a random moment": stepped,
        "writing a checkpoint": writing,
        "evaluating": evaluating,
    }[moment]
    if not wait_until(process, reached):
        return False
    if moment in ("a random moment", "filling the loader"):
        time.sleep(random.uniform(0, 1.5))
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def newest_saved(workdir: Path) -> int:
    folder = workdir / "checkpoints"
    names = os.listdir(folder) if folder.exists() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def count_rows(workdir: Path) -> int:
    log = workdir / "metrics.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def end_of(config: Path, workdir: Path) -> tuple[TrainState, dict]:
    """The last checkpoint of a finished run."""
    run = override(load_config(config), [])
    with RunCheckpoints(workdir, run.checkpoint) as checkpoints:
        return checkpoints.restore(run.steps, set_up(run).state_like)


def figures(workdir: Path) -> dict[int, dict[str, float]]:
    """By step, all that does not depend on the clock."""
    found: dict[int, dict[str, float]] = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        kept = {k: v for k, v in row.items() if not any(word in k for word in OF_THE_CLOCK)}
        found.setdefault(row["step"], {}).update(kept)
    return found


def differences(config: Path, one: Path, other: Path) -> list[str]:
    """What differs between the ends of two runs."""
    (state, loader), (other_state, other_loader) = end_of(config, one), end_of(config, other)
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        where = jax.tree_util.keystr(path)
        twin = dict(jax.tree_util.tree_leaves_with_path(other_state))[path]
        if np.asarray(leaf).tobytes() != np.asarray(twin).tobytes():
            found.append(f"state{where} differs")
    if loader != other_loader:
        found.append(f"data position: {loader} and {other_loader}")
    logged, other_logged = figures(one), figures(other)
    for step in sorted(logged.keys() | other_logged.keys()):
        row, twin = logged.get(step, {}), other_logged.get(step, {})
        names = sorted(name for name in row.keys() | twin.keys() if row.get(name) != twin.get(name))
        if names:
            found.append(f"step {step}: {', '.join(names)} differ")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="rwkv_stress_"))
    pictures = folder / "pictures"
    pictures.mkdir()
    write_pictures(pictures)
    config = folder / "stress_run.py"
    tiny = str(ROOT / "tests" / "fixtures" / "tiny_run.py")
    config.write_text(CONFIG.format(tiny=tiny, steps=STEPS, data=f"folder:{pictures}"))

    began = time.monotonic()
    whole, killed, output = folder / "whole", folder / "killed", folder / "output.txt"
    if start(config, whole, output).wait() != 0:
        sys.exit(f"the run that nobody kills failed:\n{output.read_text()[-2000:]}")
    moments: Counter[str] = Counter()
    kinds = ["a random moment", "writing a checkpoint", "evaluating", "filling the loader"]
    while moments.total() < arguments.kills:
        moment = kinds[moments.total() % len(kinds)]
        process = start(config, killed, output)
        if kill_at(moment, process, killed, output):
            moments[moment] += 1
            steps = count_rows(killed)
            print(f"kill {moments.total()}: {moment}, {steps} rows logged", flush=True)
        elif process.poll() == 0:  # finished early: the killed run begins again, elsewhere
            found = differences(config, whole, killed)
            print(f"finished after {moments.total()} kills: {found or 'equal'}", flush=True)
            if found:
                sys.exit("\n".join(found))
            shutil.rmtree(killed)
        else:
            process.kill()
            sys.exit(f"a restart failed:\n{output.read_text()[-2000:]}")
    if start(config, killed, output).wait() != 0:
        sys.exit(f"the last start failed:\n{output.read_text()[-2000:]}")
    found = differences(config, whole, killed)
    report = "\n".join(
        [
            "# Killed again and again",
            "",
            f"Output of `make stress` ({time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, jax"
            f" {jax.__version__}): {arguments.kills} times SIGKILL in a run of {STEPS} steps.",
            "",
            "| moment | kills |",
            "|---|---|",
            *(f"| {moment} | {count} |" for moment, count in moments.items()),
            "",
            "Compared with a run never killed, to the last bit: parameters, optimizer state, data"
            " position, all logged losses, norms and figures: "
            + ("**equal**." if not found else "; ".join(found[:20])),
            "",
            f"It took {(time.monotonic() - began) / 60:.0f} minutes.",
            "",
        ]
    )
    print(report)
    if arguments.out is not None:
        arguments.out.write_text(report)
    if found:
        sys.exit(f"both runs are kept in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
