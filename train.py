"""Train a dual encoder: `python train.py --config configs/NAME.py --workdir RUN [--field value]`.

Read from top to bottom, it is one run. Started again with the same workdir, it goes on from the
newest whole checkpoint and ends with the same parameters, bit for bit, as one that never stopped.
With `--dry_run --topology v5e:16x16` instead of a workdir it says what the run would cost there.
"""

import argparse
import contextlib
import json
import logging
import sys
import time
from pathlib import Path

import jax

from rwkv_jax.config import ConfigError, RunConfig, load_config, override
from rwkv_jax.data.loader import make_train_loader
from rwkv_jax.data.prefetch import device_prefetch
from rwkv_jax.data.records import DatasetError
from rwkv_jax.data.skipped import TooManySkippedError
from rwkv_jax.data.tokenizer import Tokenizer
from rwkv_jax.distributed import (
    Cluster,
    ProcessesError,
    check_agreement,
    has_lost_others,
    is_first,
    join,
    leave,
    on_any_process,
)
from rwkv_jax.evaluation.embed import embedder_from
from rwkv_jax.evaluation.report import write_report
from rwkv_jax.evaluation.results import write_results
from rwkv_jax.evaluation.run import Evaluation, check_datasets, evaluate
from rwkv_jax.files import write_atomically
from rwkv_jax.host_memory import keep_freed_memory
from rwkv_jax.models.params import check_same_model
from rwkv_jax.topology import TopologyError, known_topologies
from rwkv_jax.training.checkpoint import (
    CheckpointError,
    RunCheckpoints,
    quiet_late_callbacks,
)
from rwkv_jax.training.dry_run import DoesNotFitError, dry_run, table
from rwkv_jax.training.metrics_log import open_log
from rwkv_jax.training.profile import StepProfile
from rwkv_jax.training.setup import set_up
from rwkv_jax.training.sharding import batch_sharding, on_this_process
from rwkv_jax.training.state import Params, begun_with
from rwkv_jax.training.stop import StopRequest
from rwkv_jax.training.watch import NonFiniteLossError, Watch
from rwkv_jax.training.workdir import CONFIG_FILE, alone_in, check_workdir
from rwkv_jax.weights import load_weights, whole_steps, write_model_json
from rwkv_jax.wkv import using


def train(config: RunConfig, workdir: Path) -> None:
    # ------------------------------------------------------------- all processes, one run
    check_agreement(config.to_dict())
    first_process = is_first()

    # ------------------------------------------------------------- the workdir: new, or known
    check_workdir(workdir, config)

    # ------------------------------------------------------------- data, and the run's parts
    source = config.data.open()
    check_datasets(config.eval, config.data.data_dir)
    tokenizer = Tokenizer(config.data.loader.context_length)
    try:
        setup = set_up(config, text_kinds=sorted(source.text_kinds))
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

    weights = None
    if config.start_from is not None and not whole_steps(workdir):
        weights = starting_weights(config.start_from, setup.state_like.params)

    if first_process:
        print(
            f"{setup.parameters:,} parameters, {len(source):,} records of {source.name},"
            f" {setup.mesh.size} {jax.default_backend()} device(s) of {jax.process_count()}"
            f" process(es), {setup.dtype.name} matrix products",
            flush=True,
        )

    # ------------------------------------------------------------- start, or go on
    with (
        alone_in(workdir) if first_process else contextlib.nullcontext(),
        StopRequest() as stop,
        RunCheckpoints(workdir, config.checkpoint) as checkpoints,
        loader,
    ):
        first = checkpoints.newest_undamaged() or 0
        if first:
            state, loader_state = checkpoints.restore(first, setup.state_like)
            try:
                loader.set_state(loader_state)
            except ValueError as error:
                raise ConfigError(f"{config.data.dataset or 'data.mixture'}: {error}") from error
            if first_process:
                print(f"going on from step {first} of {workdir}", flush=True)
        else:
            state = setup.initialise(jax.random.key(config.seed))
            if config.start_from is not None:
                if weights is None:  # all checkpoints were damaged
                    weights = starting_weights(config.start_from, setup.state_like.params)
                state = begun_with(state, weights, setup.state_like)
            loader_state = loader.get_state()
        if first_process:  # not before what is there was found to be this run's
            text = json.dumps(config.to_dict(), indent=1) + "\n"
            write_atomically(workdir / CONFIG_FILE, text)
            write_model_json(workdir, config.model)
        log = open_log(workdir if first_process else None, first, config.steps)
        watch = Watch(
            log,
            log_every=config.log_every,
            work=setup.work,
            checkpoints=checkpoints.directory,
        )
        watch.last_saved = first or None

        def save(step: int) -> None:
            watch.flush()  # nothing is saved behind a loss that is no number
            with watch.saving(step):
                checkpoints.save(state, loader_state)

        def judge(step: int, params: Params) -> Evaluation:
            embedder = embedder_from(
                config.model,
                params,
                dtype=setup.dtype,
                batch_size=config.eval.batch_size,
                pool_padding=config.eval.pool_padding,
            )
            evaluation = evaluate(embedder, config.eval, config.data.data_dir, say=log.say)
            log.write(step, evaluation.metrics)
            return evaluation

        def judge_if_due(step: int) -> None:
            if config.eval_every is not None and step % config.eval_every == 0:
                watch.flush()  # nothing is judged behind a loss that is no number
                judge(step, on_this_process(state.evaluated(config.eval.params), setup.mesh))

        # --------------------------------------------------------- the steps
        step, stopped_by = first, None
        if 0 < first < config.steps and not on_any_process(log.past.judged == first):
            judge_if_due(first)  # a run that is asked to stop saves the step, and no more
        with (
            StepProfile(workdir, config.profile) as profile,
            device_prefetch(
                loader, batch_sharding(setup.mesh), config.data.loader.prefetch
            ) as batches,
        ):
            for step in range(first + 1, config.steps + 1):
                asked = time.monotonic()
                batch, keys, loader_state = next(batches)
                waited = time.monotonic() - asked
                profile.before(step)
                with jax.transfer_guard("disallow"):
                    state, metrics = setup.step(state, batch)
                profile.after(step, metrics)
                watch.step(step, metrics, keys, waited, loader_state)
                stopped_by = stop.asked(step)
                if stopped_by is not None or step == config.steps:
                    break
                with watch.paused():
                    judge_if_due(step)
                    if step % config.checkpoint.every == 0:
                        save(step)
        save(step)
        checkpoints.wait()
        if step < config.steps:
            log.say(f"{stopped_by}: saved step {step}; the same command goes on from there")
            log.close()
            return

        # --------------------------------------------------------- judge, and show
        params = on_this_process(state.evaluated(config.eval.params), setup.mesh)
        evaluation = judge(step, params)
        log.close()
        if not first_process:
            return
        saved = checkpoints.directory / str(step)
        write_results(
            workdir / "results.json", evaluation, checkpoint=saved, step=step, params=params
        )
        print(evaluation.table())
        print(f"report: {write_report(workdir)}", flush=True)


def starting_weights(path: str, like: Params) -> Params:
    """The parameters of `path`, checked against the model that is to begin with them."""
    try:
        params = load_weights(Path(path)).params
        check_same_model(like, params)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"start_from = {path!r}: {error}") from error
    return params


def show_help(parser: argparse.ArgumentParser) -> None:
    """This program's own flags and, where a config is named, all of its fields."""
    parser.print_help()
    of_config = argparse.ArgumentParser(add_help=False)
    of_config.add_argument("--config")
    named = of_config.parse_known_args()[0].config
    if named is None:
        print("\nWith --config NAME --help, every field of that configuration as well.")
        return
    print(flush=True)
    try:
        override(load_config(named), ["--help"])
    except ConfigError as error:
        sys.exit(f"train.py: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, add_help=False)
    parser.add_argument("--config", required=True, help="a file of configs/")
    parser.add_argument("--workdir", help="RUN; made if missing")
    paper = parser.add_argument_group("a run on paper")
    paper.add_argument("--dry_run", action="store_true", help="compile the step, and count")
    paper.add_argument("--topology", help=f"for which devices: {known_topologies()}")
    several = parser.add_argument_group("several processes, where JAX cannot find them by itself")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    several.add_argument("--processes", type=int, help="how many there are")
    several.add_argument("--process-id", type=int, help="which one this is, from 0")
    if {"-h", "--help"} & set(sys.argv[1:]):
        show_help(parser)
        return
    arguments, overrides = parser.parse_known_args()
    keep_freed_memory()
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    # Orbax logs a traceback of what it raises again, here as one sentence.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    quiet_late_callbacks()
    if arguments.workdir == "":
        parser.error('--workdir "" names no folder: is a variable unset?')
    if arguments.dry_run == (arguments.workdir is not None):
        parser.error("give either --workdir RUN, or --dry_run without one")
    if arguments.topology and not arguments.dry_run:
        parser.error("--topology goes with --dry_run: a run takes the devices it finds")
    try:
        if arguments.dry_run:
            config = override(load_config(arguments.config), overrides)
            with using(config.kernels):
                print(table(dry_run(config, arguments.topology or "local")))
            return
        join(Cluster(arguments.coordinator, arguments.processes, arguments.process_id))
        config = override(load_config(arguments.config), overrides)
        with using(config.kernels):
            train(config, Path(arguments.workdir))
    except KeyboardInterrupt:
        stopped = "train.py: stopped; the same command goes on from the newest whole checkpoint"
        print(stopped, file=sys.stderr)
        sys.exit(130)  # what a shell expects after Ctrl-C
    except (
        CheckpointError,
        ConfigError,
        DatasetError,
        DoesNotFitError,
        NonFiniteLossError,
        OSError,  # no such file, no permission, no space
        ProcessesError,
        TooManySkippedError,
        TopologyError,
    ) as error:
        if jax.process_count() > 1:
            leave(f"train.py, process {jax.process_index()}: {error}")
        if isinstance(error, CheckpointError):
            leave(f"train.py: {error}")  # Orbax's threads would complain on the usual way out
        sys.exit(f"train.py: {error}")
    except Exception as error:
        if not has_lost_others(error):
            raise
        leave(
            f"train.py, process {jax.process_index()}: another process of this run has ended"
            f" ({str(error).splitlines()[0][:200]}). Look at its output, then start all processes"
            " again with the same --workdir: training goes on from the newest whole checkpoint"
        )


if __name__ == "__main__":
    main()
