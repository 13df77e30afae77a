"""Evaluate a checkpoint: restore it, run the evaluators, write what they found.

python eval.py --checkpoint RUN                          what the run itself was to be judged on
python eval.py --checkpoint DIR --config configs/NAME.py what that config is judged on
python eval.py --checkpoint DIR --suite paper            the papers' tables, on sets in --data-dir
"""

import argparse
import dataclasses
import json
import math
import os
import sys
import typing
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

import rwkv_jax
from rwkv_jax.config import ConfigError, load_config
from rwkv_jax.data.skipped import TooManySkippedError
from rwkv_jax.evaluation.catalog.entry import MODES
from rwkv_jax.evaluation.class_cache import ClassCache
from rwkv_jax.evaluation.config import EvalConfig
from rwkv_jax.evaluation.embed import embedder_from
from rwkv_jax.evaluation.results import versions, write_results
from rwkv_jax.evaluation.run import evaluate, to_standard_error
from rwkv_jax.evaluation.suite.ledger import Ledger
from rwkv_jax.evaluation.suite.protocol import SWITCHES, Protocol
from rwkv_jax.evaluation.suite.run import SuiteResults, run_suite
from rwkv_jax.evaluation.suite.tasks import Task, tasks_of
from rwkv_jax.evaluation.suite.write import write_suite
from rwkv_jax.files import disk_error
from rwkv_jax.host_memory import keep_freed_memory
from rwkv_jax.models.params import params_to_dict
from rwkv_jax.precision import compute_dtype
from rwkv_jax.pretrained import PretrainedClip
from rwkv_jax.training.config import MeshConfig
from rwkv_jax.training.sharding import make_mesh
from rwkv_jax.weights import params_sha256
from rwkv_jax.wkv import Kernels, using

RUN_CONFIG = "config.json"  # written by train.py


def find_run(checkpoint: Path) -> Path | None:
    """The training run's folder that `checkpoint` is, or lies in as RUN/checkpoints/STEP."""
    for folder in (checkpoint, checkpoint.parent.parent):
        if (folder / RUN_CONFIG).is_file():
            return folder
    return None


def default_out(checkpoint: Path, run: Path | None, config: Path | None) -> Path:
    """Beside the weights; an older step's, or another config's, do not take the run's place."""
    other = "" if config is None else f"_{config.stem}"
    if run is not None and checkpoint.resolve() != run:
        return run / f"results_{checkpoint.resolve().name}{other}.json"
    return checkpoint / f"results{other}.json"


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


def suite_folder(checkpoint: Path, run: Path | None) -> Path:
    """Where the suite's files go: one folder a checkpoint."""
    if run is not None and checkpoint.resolve() != run:
        return run / f"suite_{checkpoint.name}"
    return checkpoint / "suite"


def suite_settings(config: Path | None, run: Path | None) -> tuple[EvalConfig, str, str]:
    """A config's where there is one, else the usual: nothing of the suite needs one."""
    if config is None and run is None:
        return EvalConfig(), "data", "auto"
    return choose_config(config, run)


def measure_suite(
    tasks: Sequence[Task],
    protocol: Protocol,
    restored: PretrainedClip,
    config: EvalConfig,
    data_dir: str,
    *,
    name: str,
    dtype: jnp.dtype,
    folder: Path,
) -> SuiteResults:
    """Measures tasks on all devices of this process, shows them, and writes FOLDER's files.

    Where nothing was measured, FOLDER keeps the files it has.
    """
    params = params_to_dict(nnx.state(restored.model))
    mesh = make_mesh(MeshConfig(), jax.local_devices())
    batch_size = math.ceil(config.batch_size / mesh.size) * mesh.size
    checkpoint = {
        "path": str(restored.source),
        "step": restored.step,
        "parameter_hash": params_sha256(jax.device_get(params)),
    }
    # A picture's feature may differ in its last bits with the batch and the number of devices.
    basis = {
        "parameters": checkpoint["parameter_hash"],
        "precision": dtype.name,
        "batch_size": batch_size,
        "devices": mesh.size,
        "pool_padding": config.pool_padding,
    }
    embedder = embedder_from(
        restored.config,
        params,
        dtype=dtype,
        batch_size=batch_size,
        pool_padding=config.pool_padding,
        mesh=mesh,
    )
    results = run_suite(
        embedder,
        tasks,
        protocol,
        data_dir,
        say=to_standard_error,
        ledger=Ledger(folder, basis),
        cache=ClassCache(folder / "class_features", json.dumps(basis)),
    )
    show_suite(results)
    if not results.measured:
        print(f"nothing was measured: {folder} is left as it is")
        return results
    try:
        write_suite(
            folder,
            results,
            name=name if restored.step is None else f"{name}, step {restored.step}",
            checkpoint=checkpoint,
            parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
            precision=dtype.name,
            versions=versions(),
        )
    except OSError as error:
        refuse(disk_error(error))
    print(f"tables: {folder / 'tables.html'}, {folder / 'tables.md'}")
    return results


def show_suite(results: SuiteResults) -> None:
    """Prints what was found."""
    for name, each in results.measured.items():
        done = "  (finished before)" if name in results.reused else ""
        print(
            f"{name:30} {each.metric:18} {each.value:6.1%}  chance {each.chance:6.1%}{done}",
            flush=True,
        )
    for title, problems in (("missing", results.missing), ("failed", results.failed)):
        for name, why in problems.items():
            print(f"{title}: {name}: {why}", flush=True)


def refuse(why: str) -> typing.NoReturn:
    """Ends the process with 2."""
    print(f"eval.py: {why}", file=sys.stderr)
    sys.exit(2)


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
        "--out",
        type=Path,
        help="default: CHECKPOINT/results.json or RUN/results_STEP.json, with --config"
        " results_CONFIG.json or results_STEP_CONFIG.json there;"
        " with --suite a folder, CHECKPOINT/suite or RUN/suite_STEP",
    )
    parser.add_argument(
        "--suite",
        nargs="+",
        metavar="NAME",
        help="paper, zero_shot, linear_probe, retrieval, or one set, such as zero_shot/cifar10",
    )
    parser.add_argument("--data-dir", help="where the sets lie; default: the config's, or data")
    parser.add_argument(
        "--mode", choices=MODES, default="clip", help="with --suite: whose protocol; default clip"
    )
    parser.add_argument(
        "--switch",
        nargs="+",
        choices=SWITCHES,
        default=[],
        help="with --suite: quirks of the authors' code to reproduce",
    )
    parser.add_argument(
        "--params", choices=("live", "ema"), help="default: what the config's eval.params says"
    )
    parser.add_argument(
        "--kernels",
        choices=typing.get_args(Kernels),
        default="auto",
        help="none leaves all to XLA, where one of our kernels is suspected",
    )
    arguments = parser.parse_args()
    if not arguments.suite and arguments.out and arguments.out.suffix != ".json":
        parser.error(f"--out {arguments.out}: must end in .json; the features go beside it as .npz")
    keep_freed_memory()
    try:
        with using(arguments.kernels):
            measure(arguments)
    except KeyboardInterrupt:
        print("eval.py: stopped; what was finished is kept", file=sys.stderr, flush=True)
        sys.stdout.flush()
        # 130 is what a shell expects after Ctrl-C. Threads that are still reading or computing can
        # crash the interpreter on its usual way out.
        os._exit(130)


def measure(arguments: argparse.Namespace) -> None:
    """What the command line asks for.

    A wrong wish ends the process with 2, as does a suite of which nothing was measured; one of
    which a task failed ends it with 1.
    """
    if not arguments.checkpoint.is_dir():
        refuse(
            f"there is no folder {arguments.checkpoint}: --checkpoint takes a run,"
            " RUN/checkpoints/STEP, or a weights folder"
        )
    run = find_run(arguments.checkpoint.resolve())
    if arguments.suite:
        folder = arguments.out or suite_folder(arguments.checkpoint, run)
        try:
            tasks = tasks_of(arguments.suite)
            protocol = Protocol(arguments.mode, tuple(arguments.switch))
            config, data_dir, precision = suite_settings(arguments.config, run)
            restored = rwkv_jax.load(
                arguments.checkpoint, precision, params=arguments.params or config.params
            )
            results = measure_suite(
                tasks,
                protocol,
                restored,
                config,
                arguments.data_dir or data_dir,
                name=(run or arguments.checkpoint.resolve()).name,
                dtype=compute_dtype(precision),
                folder=folder,
            )
        except (ValueError, FileNotFoundError, NotADirectoryError) as error:
            refuse(str(error))
        except OSError as error:
            refuse(disk_error(error))
        if results.failed or not results.measured:
            sys.exit(1 if results.failed else 2)
        return
    out = arguments.out or default_out(arguments.checkpoint, run, arguments.config)
    try:
        # ------------------------------------------------------------ restore
        config, data_dir, precision = choose_config(arguments.config, run)
        data_dir = arguments.data_dir or data_dir
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
    except (ValueError, FileNotFoundError, TooManySkippedError) as error:
        refuse(str(error))
    except OSError as error:
        refuse(disk_error(error))

    # ---------------------------------------------------------------- show, then write
    print(evaluation.table(), flush=True)  # a full disk does not take it away
    try:
        write_results(
            out, evaluation, checkpoint=restored.source, step=restored.step, params=params
        )
    except OSError as error:
        refuse(disk_error(error))
    print(f"results: {out}")


if __name__ == "__main__":
    main()
