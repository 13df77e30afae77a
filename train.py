"""Train a dual encoder: `python train.py --config configs/NAME.py --workdir RUN [--field value]`.

Read from top to bottom, it is one run. Started again with the same workdir, it goes on from the
newest whole checkpoint and ends with the same parameters, bit for bit, as one that never stopped.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from rwkv_jax import weights
from rwkv_jax.config import ConfigError, RunConfig, differences, load_config, override
from rwkv_jax.data.catalog import open_dataset
from rwkv_jax.data.loader import make_train_loader
from rwkv_jax.data.prefetch import device_prefetch
from rwkv_jax.data.tokenizer import Tokenizer
from rwkv_jax.evaluation.embed import make_embedder
from rwkv_jax.evaluation.report import write_report
from rwkv_jax.evaluation.run import evaluate, write_results
from rwkv_jax.files import write_atomically
from rwkv_jax.models import RwkvClip
from rwkv_jax.precision import compute_dtype
from rwkv_jax.training.checkpoint import CheckpointError, RunCheckpoints
from rwkv_jax.training.metrics_log import MetricsLog
from rwkv_jax.training.optimizer import learning_rate_schedule, make_optimizer
from rwkv_jax.training.sharding import (
    batch_sharding,
    check_batch_divides,
    make_mesh,
    replicated,
)
from rwkv_jax.training.state import TrainState
from rwkv_jax.training.stop import StopRequest
from rwkv_jax.training.update import make_train_step
from rwkv_jax.training.watch import NonFiniteLossError, Watch


def train(config: RunConfig, workdir: Path) -> None:
    # ---------------------------------------------------------------- the workdir, new or known
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

    # ---------------------------------------------------------------- data
    source = open_dataset(config.data.dataset, config.data.split, config.data.data_dir)
    tokenizer = Tokenizer(config.data.loader.context_length)
    loader = make_train_loader(
        source,
        config.data.loader,
        tokenizer,
        batch_size=config.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )

    # ---------------------------------------------------------------- model and optimizer
    dtype = compute_dtype(config.precision)
    optimizer = make_optimizer(config.optimizer, config.steps)

    def initial_state(key: jax.Array) -> TrainState:
        model = RwkvClip(config.model, dtype=dtype, rngs=nnx.Rngs(key))
        params = weights.params_to_dict(nnx.state(model))
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    graphdef = nnx.graphdef(
        nnx.eval_shape(lambda: RwkvClip(config.model, dtype=dtype, rngs=nnx.Rngs(0)))
    )
    init = jax.jit(initial_state, out_shardings=replicated(mesh))
    state_like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)),
        jax.eval_shape(initial_state, jax.random.key(config.seed)),
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(state_like.params))
    print(
        f"{count:,} parameters, {len(source):,} records of {source.name},"
        f" {mesh.size} {jax.default_backend()} device(s), {jnp.dtype(dtype).name} matmuls",
        flush=True,
    )

    # ---------------------------------------------------------------- start, or go on
    write_atomically(config_file, json.dumps(config.to_dict(), indent=1) + "\n")
    weights.write_model_json(workdir, config.model)
    with RunCheckpoints(workdir, config.checkpoint) as checkpoints, StopRequest() as stop:
        first = checkpoints.latest_step() or 0
        if first:
            state, loader_state = checkpoints.restore(first, state_like)
            loader.set_state(loader_state)
            print(f"going on from step {first} of {workdir}", flush=True)
        else:
            state = init(jax.random.key(config.seed))
        loader_state = loader.get_state()
        log = MetricsLog(workdir, first_step=first, total_steps=config.steps)
        watch = Watch(
            log,
            log_every=config.log_every,
            batch_size=config.batch_size,
            checkpoints=checkpoints.directory,
        )
        watch.last_saved = first or None
        train_step = make_train_step(
            graphdef,
            optimizer,
            learning_rate_schedule(config.optimizer, config.steps),
            positives=config.positives,
            seed=config.seed,
            mesh=mesh,
        )
        embedder = make_embedder(
            graphdef, tokenizer, image_size=config.model.image.image_size, mesh=mesh
        )

        def save(state: TrainState, loader_state: dict) -> None:
            watch.flush()  # nothing is saved after a loss that is no number
            checkpoints.save(state, loader_state)
            watch.last_saved = int(state.step)

        # ------------------------------------------------------------ the steps
        batches = device_prefetch(loader, batch_sharding(mesh), config.data.loader.prefetch)
        try:
            with jax.transfer_guard("disallow"):
                for number in range(first + 1, config.steps + 1):
                    asked = time.monotonic()
                    batch, keys, loader_state = next(batches)
                    waited = time.monotonic() - asked
                    state, metrics = train_step(state, batch)
                    with jax.transfer_guard("allow"):
                        watch.step(number, metrics, keys, waited, loader.skipped.share)
                        watch.pause()
                        if number % config.checkpoint.every == 0 and number < config.steps:
                            save(state, loader_state)
                        if number % config.eval.every == 0 and number < config.steps:
                            watch.flush()
                            result = evaluate(embedder.bind(state.params), config.eval, config.data.data_dir)
                            log.write(number, result.metrics)
                        watch.resume()
                    if stop.signal is not None:
                        break
            save(state, loader_state)
            checkpoints.wait()
        finally:
            batches.close()
        if stop.signal is not None and int(state.step) < config.steps:
            log.say(f"{stop.signal}: saved step {int(state.step)}; the same command goes on")
            log.close()
            return

        # ------------------------------------------------------------ judge, and show
        result = evaluate(embedder.bind(state.params), config.eval, config.data.data_dir)
        log.write(config.steps, result.metrics)
        log.close()
    write_results(workdir / "results.json", result, checkpoint=checkpoints.directory / str(config.steps))
    print(result.table(), flush=True)
    print(f"report: {write_report(workdir)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, add_help=False)
    parser.add_argument("--config", required=True, help="a file of configs/")
    parser.add_argument("--workdir", required=True, type=Path, help="RUN; created if missing")
    arguments, overrides = parser.parse_known_args()
    try:
        train(override(load_config(arguments.config), overrides), arguments.workdir)
    except (ConfigError, CheckpointError, NonFiniteLossError, FileNotFoundError) as error:
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    main()
