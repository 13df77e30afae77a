"""Weights from other formats into Orbax, and a run's parameters out of its checkpoints.

    python -m rwkv_jax.convert from-torch --weights FILE --config FILE.json --out DIR
    python -m rwkv_jax.convert export --checkpoint RUN --out DIR

Either writes a new weights folder for `rwkv_jax.load`, and reads it back before it is shown.
"""

import errno
import json
import logging
import sys
from pathlib import Path

import jax
import numpy as np
import tyro

from rwkv_jax.convert.torch_config import config_from_torch
from rwkv_jax.convert.torch_files import open_tensors
from rwkv_jax.convert.torch_layout import params_from_torch, pieces
from rwkv_jax.files import disk_error
from rwkv_jax.models import ClipConfig
from rwkv_jax.models.params import ModelMismatchError, Params, WhichParams, flat_params
from rwkv_jax.training.checkpoint import quiet_late_callbacks
from rwkv_jax.weights import (
    WeightsError,
    load_weights,
    new_directory,
    params_sha256,
    write_weights,
)


def from_torch(weights: Path, config: Path, out: Path) -> None:
    """Converts the authors' PyTorch weights.

    Args:
        weights: their state dict, as .pt (needs the extra `torch`), .npz or .safetensors.
        config: their JSON configuration, published beside the weights.
        out: the weights folder to write; must not exist.
    """
    if not config.is_file():
        raise FileNotFoundError(f"{config} is no file")
    try:
        model = config_from_torch(json.loads(config.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{config}: {error}") from error
    with new_directory(out) as unfinished, open_tensors(weights) as tensors:
        _write(unfinished, out, model, params_from_torch(model, tensors))
        restored = load_weights(unfinished).params
        flat = {path: np.asarray(leaf) for path, leaf in flat_params(restored).items()}
        # Each source tensor is read anew and compared with its own place in what was restored.
        pairs = (
            (np.asarray(tensors[piece.name], np.float32), flat[piece.path][piece.index], piece.form)
            for piece in pieces(restored)
        )
        difference = max(
            float(np.max(np.abs(form.to_ours(source, ours.shape) - ours)))
            for source, ours, form in pairs
        )
        if difference != 0.0:
            raise WeightsError(f"what was read back differs from {weights} by {difference}")
        count = len(tensors)
    _report(out, restored, f"{count} tensors of {weights}", difference)


def export(checkpoint: Path, out: Path, params: WhichParams = "live") -> None:
    """Writes a run's parameters alone: no optimizer, no data position, restorable anywhere.

    Args:
        checkpoint: the run's folder (its newest whole checkpoint), or one RUN/checkpoints/STEP.
        out: the weights folder to write; must not exist.
        params: ema: the moving average that the run kept beside its parameters.
    """
    with new_directory(out) as unfinished:
        source = load_weights(checkpoint, params)
        _write(unfinished, out, source.config, source.params)
        restored = load_weights(unfinished).params
        pairs = zip(jax.tree.leaves(source.params), jax.tree.leaves(restored), strict=True)
        difference = max(
            float(np.max(np.abs(np.asarray(ours) - np.asarray(theirs)))) for ours, theirs in pairs
        )
        if difference != 0.0:
            raise WeightsError(f"what was read back differs from {source.source} by {difference}")
    _report(out, restored, str(source.source), difference)


def _write(unfinished: Path, out: Path, model: ClipConfig, params: Params) -> None:
    try:
        write_weights(unfinished, model, params)
    except (ModelMismatchError, OSError):
        raise
    # Orbax has no error type of its own: a full disk arrives as what TensorStore raises.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(errno.EIO, reason, str(out)) from error


def _report(out: Path, params: Params, source: str, difference: float) -> None:
    leaves = jax.tree.leaves(params)
    norm = np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in leaves))
    count = sum(leaf.size for leaf in leaves)
    print(
        f"{out}: {count:,} parameters ({4 * count:,} bytes, norm {norm:.6f}) read back;"
        f" largest difference from {source}: {difference:g};"
        f" sha256 {params_sha256(params)}"
    )


def main() -> None:
    # Orbax logs a traceback of what it raises again, here as one sentence.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    quiet_late_callbacks()
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"from-torch": from_torch, "export": export},
            prog="python -m rwkv_jax.convert",
            description=__doc__,
        )
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        print(f"error: {disk_error(error)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
