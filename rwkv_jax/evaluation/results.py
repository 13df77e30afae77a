"""What an evaluation leaves on disk: results.json for everybody, results.npz for the report.

results.json: {"metrics": name -> value, "chance": name -> value, "checkpoint": {path, step,
parameter_hash}, "datasets": dataset/split -> {content_hash, count, skipped}, "prompts": set ->
{templates, sha256}, "suite": task -> {parts, prompts, switches, ...}, "config", "seconds",
"versions"}. results.npz: the features behind the
figures, plain arrays (nothing is pickled).
"""

import dataclasses
import json
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int

from rwkv_jax.data.catalog import open_dataset
from rwkv_jax.evaluation.features import EmbeddedSplit
from rwkv_jax.evaluation.run import Evaluation
from rwkv_jax.files import open_atomically, write_atomically
from rwkv_jax.weights import params_sha256

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "opencv-python-headless")


def versions() -> dict[str, str]:
    """What the numbers were computed with."""
    device = jax.local_devices()[0]
    found = {name: metadata.version(name) for name in PACKAGES}
    return {
        "code": code_version(),
        "python": platform.python_version(),
        "device": device.device_kind,
        **found,
    }


def code_version() -> str:
    """The commit of the checkout that this file lies in, or the installed package's version."""
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        try:
            described = subprocess.run(command, capture_output=True, text=True, check=True)
            return f"commit {described.stdout.strip()}"
        except (OSError, subprocess.CalledProcessError):  # no git, or another user's checkout
            pass
    try:
        return f"rwkv-jax {metadata.version('rwkv-jax')}"
    except metadata.PackageNotFoundError:  # a copy without its history
        return "not known"


def write_results(
    path: Path, evaluation: Evaluation, *, checkpoint: Path, step: int | None, params: Any
) -> None:
    """Writes the results at `path` and the features beside it (`embeddings_path`), each atomically.

    Args:
      path: results.json or another file to write.
      evaluation: what was found.
      checkpoint: where the parameters came from.
      step: the training step they are of; None where that is not known.
      params: the parameters, to be hashed.

    Raises:
      OSError: a file cannot be written; it is named.
    """
    results = {
        "metrics": evaluation.metrics,
        "chance": evaluation.chance,
        "checkpoint": {
            "path": str(checkpoint),
            "step": step,
            "parameter_hash": params_sha256(jax.device_get(params)),
        },
        "datasets": evaluation.datasets,
        "prompts": evaluation.prompts,
        "suite": {
            name: each.to_dict()
            for name, each in (evaluation.suite.measured if evaluation.suite else {}).items()
        },
        "config": dataclasses.asdict(evaluation.config),
        "seconds": {name: round(value, 3) for name, value in evaluation.seconds.items()},
        "versions": versions(),
    }
    _write_embeddings(embeddings_path(path), evaluation)
    write_atomically(path, json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def embeddings_path(results: Path) -> Path:
    """Where the features behind a results file lie: results.json -> results.npz."""
    return results.with_suffix(".npz")


def _write_embeddings(path: Path, evaluation: Evaluation) -> None:
    """All texts that were encoded, and the pictures that retrieval and zero-shot used."""
    judged = {(each.dataset, each.split) for each in evaluation.config.retrieval}
    judged |= {(each.dataset, each.split) for each in evaluation.config.zero_shot}
    words, features = evaluation.texts
    arrays: dict[str, np.ndarray] = {
        "texts/features": features,
        "texts/words": np.frombuffer(json.dumps(words).encode(), np.uint8),
    }
    for dataset, name in sorted(judged):
        split = evaluation.splits[dataset, name]
        arrays[f"pictures/{dataset}/{name}/features"] = split.features
        arrays[f"pictures/{dataset}/{name}/index"] = split.index
    with open_atomically(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


class Embeddings:
    """Reads results.npz: what an `Embedder` gave, looked up instead of computed.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not one that `write_embeddings` wrote.
    """

    def __init__(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                self._arrays = {name: arrays[name] for name in arrays.files}
            words = json.loads(self._arrays["texts/words"].tobytes())
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} is missing; eval.py writes it") from None
        except Exception as error:  # a zip, a header or JSON that is broken: each has its own type
            raise ValueError(f"{path} is damaged ({error}); run eval.py again") from error
        self._place = {text: i for i, text in enumerate(words)}

    def texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "n D"]:
        """Features of texts that the evaluation encoded."""
        return self._arrays["texts/features"][[self._place[text] for text in texts]]

    def pictures(
        self, dataset: str, split: str, data_dir: str, *, content_hash: str
    ) -> EmbeddedSplit:
        """A split with the features that the evaluation computed.

        Raises:
          ValueError: the dataset is not prepared any more, or its content is another.
        """
        source = open_dataset(dataset, split, data_dir)
        if source.content_hash != content_hash:
            raise ValueError(
                f"{source.name} has changed since the evaluation (content hash"
                f" {source.content_hash[:12]}, then {content_hash[:12]}); run eval.py again"
            )
        name = f"pictures/{dataset}/{split}"
        features: Float32[np.ndarray, "P D"] = self._arrays[f"{name}/features"]
        index: Int[np.ndarray, " P"] = self._arrays[f"{name}/index"]
        return EmbeddedSplit.of(source, features, index)
