"""Weights on disk: a folder with `model.json` and `params/`, written whole or not at all.

Parameters are kept as a nested dict of float32 arrays ({"image": {"blocks": ...}}): a training
run's checkpoints hold the same dict, so one reader serves both. Arrays are restored onto one local
device, whatever number of devices they were saved from.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from rwkv_jax.checksums import find_damage
from rwkv_jax.data.preprocess import CLIP_MEAN, CLIP_STD
from rwkv_jax.files import write_atomically
from rwkv_jax.models import ClipConfig
from rwkv_jax.models.params import (
    ModelMismatchError,
    Params,
    WhichParams,
    abstract_params,
    check_same_model,
    params_from_dict,
    params_to_dict,
)

__all__ = [
    "ModelFile",
    "Params",
    "Weights",
    "WeightsError",
    "abstract_params",
    "load_weights",
    "new_directory",
    "params_from_dict",
    "params_sha256",
    "params_to_dict",
    "read_model_json",
    "restore_params",
    "save_weights",
    "whole_steps",
    "write_model_json",
    "write_weights",
]

MODEL_FILE = "model.json"
FORMAT = {"format": "rwkv_jax model", "version": 1}
PREPROCESSING = {
    "resize": "shorter side to image_size, bicubic with antialiasing, then centre crop",
    "mean": list(CLIP_MEAN),
    "std": list(CLIP_STD),
}


class WeightsError(ValueError):
    """Weights that cannot be used; the message says which, why and what to do."""


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """What `model.json` says. Only weights folders carry a checksum: a run's parameters change."""

    config: ClipConfig
    params_sha256: str | None


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters (float32 arrays on one local device) and where they came from."""

    config: ClipConfig
    params: Params
    source: Path  # the folder that held them
    step: int | None  # of the training run; None for a weights folder


def save_weights(directory: Path, config: ClipConfig, params: Params) -> str:
    """Writes a new weights folder and returns the parameters' SHA-256.

    Args:
        params: arrays, NumPy's or JAX's, of the model that `config` describes.

    Raises:
        WeightsError: `directory` exists already.
        ValueError: `params` are another model's.
    """
    with new_directory(directory) as unfinished:
        return write_weights(unfinished, config, params)


def write_weights(directory: Path, config: ClipConfig, params: Params) -> str:
    """As `save_weights`, into an existing empty folder."""
    check_same_model(abstract_params(config), params)
    params = jax.tree.map(np.asarray, params)
    digest = params_sha256(params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / "params", params)
    write_model_json(directory, config, params_sha256=digest)
    return digest


@contextlib.contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """A temporary folder that becomes `directory` when the block ends, or vanishes if it raises.

    Raises:
        WeightsError: `directory` exists already.
    """
    directory = directory.absolute()
    if directory.exists():
        raise WeightsError(f"{directory} exists already: choose another --out, or remove it first")
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(
        tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}.unfinished")
    )
    try:
        unfinished.chmod(0o755)  # mkdtemp keeps everyone else out
        yield unfinished
        os.rename(unfinished, directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def load_weights(path: Path, which: WhichParams = "live") -> Weights:
    """Reads a weights folder, the newest whole step of a run, or one RUN/checkpoints/STEP.

    Args:
        which: "ema" reads the moving average that the run kept beside its parameters.

    Raises:
        FileNotFoundError: there is no such thing at `path`.
        WeightsError: it is damaged, holds another model than its `model.json` says, or no average;
            or `which` is neither.
    """
    if which not in typing.get_args(WhichParams):
        known = " or ".join(map(repr, typing.get_args(WhichParams)))
        raise WeightsError(f"params = {which!r} is unknown: choose {known}")
    home, params_folder, step = _find(Path(path).absolute())
    model = read_model_json(home)
    if which == "ema":
        params_folder = params_folder.parent / "ema"
        if not params_folder.is_dir():
            raise WeightsError(
                f"{params_folder.parent} holds no average of the parameters (a run keeps one where"
                " optimizer.ema_decay is set, and weights folders have none): take the live ones"
            )
    if step is not None and (damage := find_damage(params_folder.parent, params_folder.name)):
        raise WeightsError(_damaged(params_folder, damage))
    params = restore_params(params_folder, abstract_params(model.config))
    if step is None and model.params_sha256 not in (None, params_sha256(params)):
        raise WeightsError(_damaged(params_folder, "its checksum is not that of model.json"))
    return Weights(model.config, params, params_folder.parent, step)


def restore_params(folder: Path, expected: Params) -> Params:
    """Restores Orbax arrays as `expected` (shapes and dtypes) says, onto one local device.

    Raises:
        WeightsError: they are another model's, naming what differs; or the folder is damaged.
    """
    sharding = SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), expected
    )
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            check_same_model(expected, ocp.StandardCheckpointHandler().metadata(folder).tree)
            return checkpointer.restore(folder, target)
    except ModelMismatchError as error:
        raise WeightsError(
            f"{folder} does not fit the model of its {MODEL_FILE}: {error}"
        ) from None
    # Orbax has no error type of its own: a truncated array arrives as a bare Exception.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise WeightsError(_damaged(folder, f"{type(error).__name__}: {reason}")) from error


def write_model_json(
    directory: Path, config: ClipConfig, *, params_sha256: str | None = None
) -> None:
    """Writes `directory`/model.json: what a reader must know besides the parameters."""
    content: dict[str, Any] = {
        **FORMAT,
        "config": config.to_dict(),
        "preprocessing": PREPROCESSING,
    }
    if params_sha256 is not None:
        content["params_sha256"] = params_sha256
    write_atomically(directory / MODEL_FILE, json.dumps(content, indent=1) + "\n")


def read_model_json(directory: Path) -> ModelFile:
    """Reads `directory`/model.json.

    Raises:
        FileNotFoundError: it is missing.
        WeightsError: it is no such file, of a later version, or wants other preprocessing.
    """
    path = directory / MODEL_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give the folder that holds {MODEL_FILE}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for key, expected in {**FORMAT, "preprocessing": PREPROCESSING}.items():
            if content.get(key) != expected:
                raise ValueError(f"{key} is {content.get(key)!r}, and only {expected!r} is known")
        return ModelFile(ClipConfig.from_dict(content["config"]), content.get("params_sha256"))
    except (ValueError, KeyError, AttributeError) as error:
        raise WeightsError(f"{path} cannot be used: {error}") from error


def params_sha256(params: Params) -> str:
    """SHA-256 of every parameter's path, shape and little-endian float32 bytes, in path order."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        array = np.ascontiguousarray(leaf, "<f4")
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _find(path: Path) -> tuple[Path, Path, int | None]:
    """(folder of model.json, folder of the arrays, step) for what `load_weights` accepts."""
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no folder: give a weights folder or a run's folder")
    if (path / "params").is_dir():
        if path.parent.name == "checkpoints" and path.name.isdecimal():
            return path.parent.parent, path / "params", int(path.name)
        return path, path / "params", None
    steps = whole_steps(path)
    if steps:
        return path, path / "checkpoints" / str(steps[-1]) / "params", steps[-1]
    raise FileNotFoundError(
        f"{path} holds neither weights (params/) nor a finished checkpoint (checkpoints/STEP/):"
        " give a weights folder, a run's folder, or wait for the run's first checkpoint"
    )


def whole_steps(run: Path) -> list[int]:
    """The steps of a run's checkpoints, oldest first.

    Orbax renames a checkpoint to its step when it is whole: unfinished ones have other names.
    """
    checkpoints = run / "checkpoints"
    if not checkpoints.is_dir():
        return []
    names = (entry.name for entry in checkpoints.iterdir() if entry.is_dir())
    return sorted(int(name) for name in names if name.isdecimal())


def _damaged(folder: Path, reason: str) -> str:
    others = [
        str(folder.parent.parent / str(step))
        for step in whole_steps(folder.parents[2])
        if str(step) != folder.parent.name
    ]
    instead = f"load an older one: {', '.join(others)}" if others else "copy or convert it again"
    return f"{folder} is damaged or incomplete ({reason}); {instead}"
