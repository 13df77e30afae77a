"""What a run left behind: config.json, metrics.jsonl, results.json and results.npz."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from rwkv_jax.evaluation.config import EvalConfig
from rwkv_jax.evaluation.results import Embeddings, embeddings_path

Row = dict[str, float]


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """A run, read.

    Attributes:
      name: the folder's name.
      config: config.json.
      history: metrics.jsonl, in the order of the steps.
      results: results.json.
      asked: the evaluators behind `results`.
      embeddings: results.npz.
    """

    name: str
    config: dict[str, Any]
    history: list[Row]
    results: dict[str, Any]
    asked: EvalConfig
    embeddings: Embeddings

    @property
    def data_dir(self) -> str:
        """Where the run's datasets lie."""
        return self.config["data"]["data_dir"]

    def series(self, name: str) -> list[tuple[float, float]]:
        """(step, value) of one metric, where it was logged."""
        return [(row["step"], row[name]) for row in self.history if name in row]


def read_run(workdir: Path) -> RunFiles:
    """Reads a run's folder.

    Raises:
      FileNotFoundError: a file is missing; says which command writes it.
      ValueError: a file is damaged.
    """
    config = _read_json(workdir / "config.json", "train.py writes it")
    results = _read_json(
        workdir / "results.json", f"python eval.py --checkpoint {workdir} writes it"
    )
    try:
        asked = EvalConfig.from_dict(results["config"])
        config["data"]["data_dir"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{workdir}: config.json or results.json lacks {error}") from error
    return RunFiles(
        name=workdir.resolve().name,
        config=config,
        history=_read_history(workdir / "metrics.jsonl"),
        results=results,
        asked=asked,
        embeddings=Embeddings(embeddings_path(workdir / "results.json")),
    )


def _read_json(path: Path, hint: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: {hint}") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {hint}") from error


def _read_history(path: Path) -> list[Row]:
    """All whole lines; a run that was only evaluated has none."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text("utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # a line that was cut off
            continue
    return sorted((row for row in rows if "step" in row), key=lambda row: row["step"])
