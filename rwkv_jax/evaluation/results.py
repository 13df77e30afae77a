"""What an evaluation leaves on disk: results.json for everybody, embeddings.npz for the report.

results.json: {"metrics": name -> value, "chance": name -> value, "checkpoint": {path, step,
parameter_hash}, "datasets": dataset/split -> {content_hash, count, skipped}, "prompts": set ->
{templates, sha256}, "config", "seconds", "versions"}. embeddings.npz: the features behind the
figures, plain arrays (nothing is pickled).
"""

import dataclasses
import hashlib
import io
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int

from rwkv_jax.data.catalog import open_dataset
from rwkv_jax.evaluation.features import EmbeddedSplit
from rwkv_jax.evaluation.run import Evaluation
from rwkv_jax.files import write_atomically

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "opencv-python-headless")


def parameter_hash(params: Any) -> str:
    """A SHA-256 over names, types, shapes and bytes of all parameters, wherever they lie."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(jax.device_get(leaf))
        name = jax.tree_util.keystr(path)
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """What the numbers were computed with."""
    device = jax.local_devices()[0]
    found = {name: metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "device": device.device_kind, **found}


def write_results(
    evaluation: Evaluation, path: Path, *, checkpoint: str, step: int | None, params: Any
) -> None:
    """Writes results.json at `path`, whole or not at all.

    Args:
      evaluation: what was found.
      path: the file to write.
      checkpoint: where the parameters came from.
      step: the training step they are of; None where that is not known.
      params: the parameters, to be hashed.
    """
    results = {
        "metrics": evaluation.metrics,
        "chance": evaluation.chance,
        "checkpoint": {"path": checkpoint, "step": step, "parameter_hash": parameter_hash(params)},
        "datasets": evaluation.datasets,
        "prompts": evaluation.prompts,
        "config": dataclasses.asdict(evaluation.config),
        "seconds": {name: round(value, 3) for name, value in evaluation.seconds.items()},
        "versions": versions(),
    }
    write_atomically(path, json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def write_embeddings(evaluation: Evaluation, path: Path) -> None:
    """Writes the features of all texts, and of pictures that retrieval and zero-shot used."""
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
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(buffer.getvalue())
    temporary.replace(path)


class Embeddings:
    """Reads embeddings.npz: what an `Embedder` gave, looked up instead of computed.

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

    def texts(self, texts: "list[str] | tuple[str, ...]") -> Float32[np.ndarray, "n D"]:
        """Features of texts that the evaluation encoded."""
        return self._arrays["texts/features"][[self._place[text] for text in texts]]

    def pictures(self, dataset: str, split: str, data_dir: str) -> EmbeddedSplit:
        """A split with the features that the evaluation computed."""
        name = f"pictures/{dataset}/{split}"
        features: Float32[np.ndarray, "P D"] = self._arrays[f"{name}/features"]
        index: Int[np.ndarray, " P"] = self._arrays[f"{name}/index"]
        return EmbeddedSplit.of(open_dataset(dataset, split, data_dir), features, index)
