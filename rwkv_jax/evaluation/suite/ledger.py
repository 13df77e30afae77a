"""Finished tasks on disk, so that a restart measures only what is left.

FOLDER/sets/zero_shot.cifar10.<key>.json: the key is a hash of everything that the result depends
on (parameters, precision, pictures, prompts, switches), so another checkpoint or another copy of
the data never takes an old result for its own, and nothing is overwritten. Each also says under
which weights and protocols it was asked for ("asked"), so that tables need not ask again.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from rwkv_jax.evaluation.suite.measured import Measured
from rwkv_jax.evaluation.suite.protocol import Protocol
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
        key = _key([VERSION, self._basis, task.name, settings])
        return self._folder / f"{task.kind}.{task.dataset}.{key}.json"

    def read(self, path: Path) -> Measured | None:
        """The result at `path`; None if there is none, or none that can be read."""
        return _read(path)[0]

    def write(self, path: Path, measured: Measured, protocol: Protocol) -> None:
        """Writes a result, atomically; one that is reused becomes the newest of its task again.

        Raises:
          OSError: it cannot be written; its `filename` is `path`.
        """
        asked = _read(path)[1] | {self._who(protocol)}
        values = {**measured.to_dict(), "asked": sorted(asked)}
        write_atomically(path, json.dumps(values, indent=1) + "\n")

    def finished(self, protocol: Protocol) -> dict[str, Measured]:
        """By task, what was found of these weights under `protocol`: the newest of each."""
        files = self._folder.glob("*.json")  # the writer's own unfinished ones end otherwise
        in_time = sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name))
        who = self._who(protocol)
        found = [measured for measured, asked in map(_read, in_time) if who in asked]
        return {each.task: each for each in found if each is not None}

    def _who(self, protocol: Protocol) -> str:
        return _key([VERSION, self._basis, protocol.mode, sorted(set(protocol.switches))])


def _key(what: list[Any]) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path) -> tuple[Measured | None, set[str]]:
    """A result, and who asked for it."""
    try:
        values = json.loads(path.read_text("utf-8"))
        asked = set(values.pop("asked", ()))  # files of earlier versions do not say
        return Measured.from_dict(values), asked
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None, set()
