"""Finished tasks on disk, so that a restart measures only what is left.

FOLDER/sets/zero_shot.cifar10.<key>.json: the key is a hash of everything that the result depends
on (parameters, precision, pictures, prompts, switches), so another checkpoint or another copy of
the data never takes an old result for its own, and nothing is overwritten.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from rwkv_jax.evaluation.suite.measured import Measured
from rwkv_jax.evaluation.suite.tasks import Task
from rwkv_jax.files import write_atomically

VERSION = 1  # raise it when a task's meaning changes: old results are then measured again


class Ledger:
    """The results of one checkpoint.

    Args:
      folder: where they lie.
      basis: what all tasks depend on: the parameters' hash, the precision, the batch size.
    """

    def __init__(self, folder: Path, basis: dict[str, Any]) -> None:
        self._folder = folder / "sets"
        self._basis = basis

    def path(self, task: Task, settings: dict[str, Any]) -> Path:
        """Where the result of a task with these settings lies."""
        what = json.dumps([VERSION, self._basis, task.name, settings], sort_keys=True)
        key = hashlib.sha256(what.encode()).hexdigest()[:16]
        return self._folder / f"{task.kind}.{task.dataset}.{key}.json"

    def read(self, path: Path) -> Measured | None:
        """The result at `path`; None if there is none, or none that can be read."""
        try:
            return Measured.from_dict(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, path: Path, measured: Measured) -> None:
        """Writes a result, atomically."""
        write_atomically(path, json.dumps(measured.to_dict(), indent=1) + "\n")
