"""Train a dual encoder: `python train.py --config configs/NAME.py --workdir RUN [--field value]`.

Read from top to bottom, it is one run. Started again with the same workdir, it goes on from the
newest whole checkpoint and ends with the same parameters, bit for bit, as one that never stopped.
"""

import argparse
import json
import logging
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from rwkv_jax.config import ConfigError, RunConfig, differences, load_config, override
from rwkv_jax.data.loader import make_train_loader
from rwkv_jax.data.prefetch import device_prefetch
from rwkv_jax.data.records import DatasetError
from rwkv_jax.data.skipped import TooManySkippedError
from rwkv_jax.data.tokenizer import Tokenizer
from rwkv_jax.evaluation.embed import embedder_from
from rwkv_jax.evaluation.report import write_report
from rwkv_jax.evaluation.results import write_results
from rwkv_jax.evaluation.run import Evaluation, check_datasets, evaluate
from rwkv_jax.files import write_atomically
from rwkv_jax.host_memory import keep_freed_memory
from rwkv_jax.models import RwkvClip
from rwkv_jax.models.params import model_graphdef, params_to_dict
from rwkv_jax.precision import compute_dtype
from rwkv_jax.training.checkpoint import CheckpointError, RunCheckpoints
from rwkv_jax.training.metrics_log import MetricsLog
from rwkv_jax.training.optimizer import learning_rate_schedule, make_optimizer
from rwkv_jax.training.sharding import batch_sharding, check_batch_divides, make_mesh, replicated
from rwkv_jax.training.state import TrainState
from rwkv_jax.training.stop import StopRequest
from rwkv_jax.training.update import make_train_step
from rwkv_jax.training.watch import NonFiniteLossError, Watch
from rwkv_jax.weights import write_model_json


def train(config: RunConfig, workdir: Path) -> None:
    # ------------------------------------------------------------- the workdir: new, or known
    config_file = workdir / "config.json"
    if config_file.exists():
        changed = differences(json.loads(config_file.read_text("utf-8")), config.to_dict())
        if changed:
            raise ConfigError(
                f"{workdir} holds a run of another configuration ({'; '.join(changed)}):"
                " give the new run another --workdir, or take these settings back"
            )
    mesh = make_mesh()
    check_batch_divides(config.batch_size, mesh)

    # ------------------------------------------------------------- data
    source = config.data.open()
    check_datasets(config.eval, config.data.data_dir)
    tokenizer = Tokenizer(config.data.loader.context_length)
    try:
        loader = make_train_loader(
            source,
            config.data.loader,
            tokenizer,
            batch_size=config.batch_size // jax.process_count(),
            seed=config.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error

    # ------------------------------------------------------------- model and optimizer
    dtype = compute_dtype(config.precision)
    optimizer = make_optimizer(config.optimizer, config.steps)

    def initial_state(key: jax.Array) -> TrainState:
        params = params_to_dict(nnx.state(RwkvClip(config.model, rngs=nnx.Rngs(key))))
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    key = jax.random.key(config.seed)
    state_like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)),
        jax.eval_shape(initial_state, key),
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state_like.params))
    print(
        f"{parameters:,} parameters, {len(source):,} records of {source.name}, {mesh.size}"
        f" {jax.default_backend()} device(s), {dtype.name} matrix products",
        flush=True,
    )

    # ------------------------------------------------------------- start, or go on
    write_atomically(config_file, json.dumps(config.to_dict(), indent=1) + "\n")
    write_model_json(workdir, config.model)
    train_step = make_train_step(
        model_graphdef(config.model, dtype),
        optimizer,
        learning_rate_schedule(config.optimizer, config.steps),
        positives=config.positives,
        seed=config.seed,
        mesh=mesh,
    )
    with (
        StopRequest() as stop,
        RunCheckpoints(workdir, config.checkpoint) as checkpoints,
        loader,
    ):
        first = checkpoints.latest_step() or 0
        if first:
            state, loader_state = checkpoints.restore(first, state_like)
            loader.set_state(loader_state)
            print(f"going on from step {first} of {workdir}", flush=True)
        else:
            state = jax.jit(initial_state, out_shardings=replicated(mesh))(key)
            loader_state = loader.get_state()
        log = MetricsLog(workdir, first_step=first, total_steps=config.steps)
        watch = Watch(
            log,
            log_every=config.log_every,
            batch_size=config.batch_size,
            checkpoints=checkpoints.directory,
        )
        watch.last_saved = first or None

        def save(step: int) -> None:
            watch.flush()  # nothing is saved behind a loss that is no number
            checkpoints.save(state, loader_state)
            watch.last_saved = step

        def judge(step: int) -> Evaluation:
            embedder = embedder_from(
                config.model, state.params, dtype=dtype, batch_size=config.eval.batch_size
            )
            evaluation = evaluate(embedder, config.eval, config.data.data_dir, say=log.say)
            log.write(step, evaluation.metrics)
            return evaluation

        # --------------------------------------------------------- the steps
        step = first
        with device_prefetch(loader, batch_sharding(mesh), config.data.loader.prefetch) as batches:
            for step in range(first + 1, config.steps + 1):
                asked = time.monotonic()
                batch, keys, loader_state = next(batches)
                waited = time.monotonic() - asked
                with jax.transfer_guard("disallow"):
                    state, metrics = train_step(state, batch)
                watch.step(step, metrics, keys, waited, loader_state)
                if stop.signal is not None or step == config.steps:
                    break
                with watch.paused():
                    if step % config.checkpoint.every == 0:
                        save(step)
                    if config.eval_every is not None and step % config.eval_every == 0:
                        judge(step)
        save(step)
        checkpoints.wait()
        if step < config.steps:
            log.say(f"{stop.signal}: saved step {step}; the same command goes on from there")
            log.close()
            return

        # --------------------------------------------------------- judge, and show
        evaluation = judge(step)
        log.close()
        saved = checkpoints.directory / str(step)
        write_results(
            workdir / "results.json", evaluation, checkpoint=saved, step=step, params=state.params
        )
        print(evaluation.table())
        print(f"report: {write_report(workdir)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, add_help=False)
    parser.add_argument("--config", required=True, help="a file of configs/")
    parser.add_argument("--workdir", required=True, type=Path, help="RUN; made if missing")
    arguments, overrides = parser.parse_known_args()
    keep_freed_memory()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        train(override(load_config(arguments.config), overrides), arguments.workdir)
    except (
        CheckpointError,
        ConfigError,
        DatasetError,
        FileNotFoundError,
        NonFiniteLossError,
        PermissionError,
        TooManySkippedError,
    ) as error:
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    main()
