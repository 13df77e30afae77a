"""Runs tasks set by set: each part of a set is encoded once, whichever tasks ask for it.

A set that is missing, or broken, is reported and does not stop the others.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rwkv_jax.data.skipped import TooManySkippedError
from rwkv_jax.evaluation.catalog.entry import Part
from rwkv_jax.evaluation.catalog.find import MissingSetError
from rwkv_jax.evaluation.class_cache import ClassCache
from rwkv_jax.evaluation.embed import Embedder
from rwkv_jax.evaluation.features import EmbeddedSplit
from rwkv_jax.evaluation.suite.ledger import Ledger
from rwkv_jax.evaluation.suite.measure import PartSource, measure, open_parts, settings_of
from rwkv_jax.evaluation.suite.measured import Measured
from rwkv_jax.evaluation.suite.protocol import Protocol
from rwkv_jax.evaluation.suite.tasks import Task
from rwkv_jax.files import disk_error

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class SuiteResults:
    """What a run of the suite found.

    Attributes:
      protocol: how it was measured.
      measured: by task name, in the order that was asked for; then those of earlier runs.
      missing: by set name, how to get it.
      failed: by task name, what went wrong.
      reused: the tasks whose result lay on disk.
    """

    protocol: Protocol
    measured: dict[str, Measured]
    missing: dict[str, str]
    failed: dict[str, str]
    reused: tuple[str, ...]


def check_on_disk(tasks: Sequence[Task], protocol: Protocol, data_dir: str) -> None:
    """Opens every part, so that a long run does not end at a missing one.

    Raises:
      DatasetError: a set is missing or not as it should be.
    """
    for task in tasks:
        open_parts(task, protocol, data_dir)


def run_suite(
    embedder: Embedder,
    tasks: Sequence[Task],
    protocol: Protocol,
    data_dir: str,
    *,
    say: Say,
    ledger: Ledger | None = None,
    cache: ClassCache | None = None,
) -> SuiteResults:
    """Measures every task whose set is on disk.

    Args:
      embedder: encodes pictures and texts.
      tasks: what to measure.
      protocol: how to measure.
      data_dir: where the sets lie.
      say: is given a line about each step.
      ledger: where finished results are kept; None keeps none and finds none. What it holds of
        tasks that are not asked for joins the results.
      cache: class features of the same embedder that were computed before.
    """
    measured: dict[str, Measured] = {}
    missing: dict[str, str] = {}
    failed: dict[str, str] = {}
    reused: list[str] = []
    by_set: dict[str, list[Task]] = {}
    for task in tasks:
        by_set.setdefault(task.dataset, []).append(task)
    for number, (dataset, some) in enumerate(by_set.items(), 1):
        say(f"[{number}/{len(by_set)}] {dataset}")
        features: dict[Part, EmbeddedSplit] = {}
        for task in some:
            try:
                sources = open_parts(task, protocol, data_dir)
                settings = _settings(task, protocol, sources)
                path = ledger.path(task, settings) if ledger else None
                done = ledger.read(path) if ledger and path else None
                if done is None:
                    encode = _encoder(embedder, sources, features, say)
                    done = measure(task, protocol, sources, encode, embedder.texts, cache)
                else:
                    reused.append(task.name)
                    say(f"{task.name}: finished before, delete {path} to measure it again")
                if ledger and path:
                    _keep(ledger, path, done, protocol, say)
            except MissingSetError as error:
                missing[dataset] = str(error)
                say(f"missing: {error}")
                break
            except (ValueError, TooManySkippedError) as error:  # DatasetError among them
                failed[task.name] = str(error)
                say(f"{task.name} failed: {error}")
                continue
            measured[task.name] = done
            say(
                f"{task.name}: {done.metric} {done.value:.1%} (chance {done.chance:.1%})"
                f" [{done.seconds:.1f} s]"
            )
    in_order = {task.name: measured[task.name] for task in tasks if task.name in measured}
    if ledger and in_order:  # where nothing was measured, old results must not look like new ones
        asked = {task.name for task in tasks}
        earlier = ledger.finished(protocol)
        kept = {name: earlier[name] for name in sorted(earlier) if name not in asked}
        in_order |= kept
        reused += kept
    return SuiteResults(protocol, in_order, missing, failed, tuple(reused))


def _keep(ledger: Ledger, path: Path, done: Measured, protocol: Protocol, say: Say) -> None:
    try:
        ledger.write(path, done, protocol)
    except OSError as error:  # the result is shown nevertheless
        say(f"{done.task}: {disk_error(error)}")


def _settings(task: Task, protocol: Protocol, sources: dict[Part, PartSource]) -> dict[str, Any]:
    hashes = {part: [source.split, source.content_hash] for part, source in sources.items()}
    return {"pictures": hashes, **settings_of(task, protocol)}


def _encoder(
    embedder: Embedder,
    sources: dict[Part, PartSource],
    features: dict[Part, EmbeddedSplit],
    say: Say,
) -> Callable[[Part], EmbeddedSplit]:
    def encode(part: Part) -> EmbeddedSplit:
        if part not in features:
            source = sources[part]
            started = time.monotonic()
            features[part] = split = embedder.pictures(source)
            took = time.monotonic() - started
            rate = len(split.index) / max(took, 1e-9)
            broken = f", {split.skipped} broken" if split.skipped else ""
            say(
                f"encoded {len(split.index)} pictures of {source.name} in {took:.1f} s"
                f" ({rate:.0f} a second){broken}"
            )
        return features[part]

    return encode
