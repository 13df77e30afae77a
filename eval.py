"""Evaluate a checkpoint: restore it, run the evaluators, write what they found.

python eval.py --checkpoint RUN                          what the run itself was to be judged on
python eval.py --checkpoint DIR --config configs/NAME.py what that config is judged on
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import jax
from flax import nnx

import rwkv_jax
from rwkv_jax.config import ConfigError, load_config
from rwkv_jax.evaluation.class_cache import ClassCache
from rwkv_jax.evaluation.config import EvalConfig
from rwkv_jax.evaluation.embed import embedder_from
from rwkv_jax.evaluation.results import write_results
from rwkv_jax.evaluation.run import evaluate
from rwkv_jax.host_memory import keep_freed_memory
from rwkv_jax.models.params import params_to_dict
from rwkv_jax.precision import compute_dtype
from rwkv_jax.weights import params_sha256

RUN_CONFIG = "config.json"  # written by train.py


def find_run(checkpoint: Path) -> Path | None:
    """The training run's folder that `checkpoint` is, or lies in as RUN/checkpoints/STEP."""
    for folder in (checkpoint, checkpoint.parent.parent):
        if (folder / RUN_CONFIG).is_file():
            return folder
    return None


def default_out(checkpoint: Path, run: Path | None) -> Path:
    """Beside the weights; an older step's results do not take the place of the run's."""
    if run is not None and checkpoint.resolve() != run:
        return run / f"results_{checkpoint.name}.json"
    return checkpoint / "results.json"


def choose_config(config: Path | None, run: Path | None) -> tuple[EvalConfig, str, str]:
    """What to measure, where the data lies, and the precision to compute in.

    Raises:
      ConfigError: the config is missing or broken, or none is named and the checkpoint has none.
    """
    if config is not None:
        loaded = load_config(config)
        return loaded.eval, loaded.data.data_dir, loaded.precision
    if run is None:
        raise ConfigError(
            "the checkpoint is no training run's, so it does not say what to measure:"
            " name a config, --config configs/NAME.py"
        )
    path = run / RUN_CONFIG
    try:
        values = json.loads(path.read_text("utf-8"))
        return (
            EvalConfig.from_dict(values["eval"]),
            values["data"]["data_dir"],
            values["precision"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}); name a config with --config") from error


def main() -> None:
    # ---------------------------------------------------------------- what to do
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", required=True, type=Path, help="a run, RUN/checkpoints/STEP, or weights"
    )
    parser.add_argument("--config", type=Path, help="a file of configs/; default: the run's own")
    parser.add_argument(
        "--out", type=Path, help="default: CHECKPOINT/results.json or RUN/results_STEP.json"
    )
    parser.add_argument(
        "--params", choices=("live", "ema"), help="default: what the config's eval.params says"
    )
    arguments = parser.parse_args()
    keep_freed_memory()
    run = find_run(arguments.checkpoint.resolve())
    out = arguments.out or default_out(arguments.checkpoint, run)
    if out.suffix != ".json":
        parser.error(f"--out {out}: must end in .json; the features go beside it as .npz")

    try:
        # ------------------------------------------------------------ restore
        config, data_dir, precision = choose_config(arguments.config, run)
        config = dataclasses.replace(config, params=arguments.params or config.params)
        restored = rwkv_jax.load(arguments.checkpoint, precision, params=config.params)
        params = params_to_dict(nnx.state(restored.model))

        # ------------------------------------------------------------ measure
        embedder = embedder_from(
            restored.config,
            params,
            dtype=compute_dtype(precision),
            batch_size=config.batch_size,
            pool_padding=config.pool_padding,
        )
        pooling = "all positions" if config.pool_padding else "the text's positions"
        weights = f"{params_sha256(jax.device_get(params))} {compute_dtype(precision)} {pooling}"
        cache = ClassCache(out.parent / "class_features", weights)
        evaluation = evaluate(embedder, config, data_dir, class_cache=cache)
    except (ValueError, FileNotFoundError) as error:
        print(f"eval.py: {error}", file=sys.stderr)
        sys.exit(2)

    # ---------------------------------------------------------------- write, and show
    write_results(out, evaluation, checkpoint=restored.source, step=restored.step, params=params)
    print(evaluation.table())
    print(f"results: {out}")


if __name__ == "__main__":
    main()
