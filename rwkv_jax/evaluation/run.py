"""Runs the evaluators that a config asks for; training and eval.py both call this."""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from jaxtyping import Float32
from numpy import ndarray

from rwkv_jax.data.catalog import open_dataset
from rwkv_jax.data.records import DatasetError
from rwkv_jax.evaluation.class_cache import ClassCache
from rwkv_jax.evaluation.config import EvalConfig
from rwkv_jax.evaluation.embed import Embedder
from rwkv_jax.evaluation.features import EmbeddedSplit
from rwkv_jax.evaluation.figure import Figure, shown
from rwkv_jax.evaluation.linear_probe import linear_probe
from rwkv_jax.evaluation.prompts import PROMPTS, prompt_hash
from rwkv_jax.evaluation.retrieval import retrieval
from rwkv_jax.evaluation.suite.protocol import Protocol
from rwkv_jax.evaluation.suite.run import SuiteResults, check_on_disk, run_suite
from rwkv_jax.evaluation.suite.tasks import tasks_of
from rwkv_jax.evaluation.zero_shot import zero_shot

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
      config: what was asked for.
      figures: what was measured, in the order of the config.
      splits: by (dataset, split), the pictures that were embedded.
      texts: the texts that were embedded, and their features.
      seconds: wall time by step.
      suite: what the tasks of the suite found; None where none was asked for.
    """

    config: EvalConfig
    figures: tuple[Figure, ...]
    splits: dict[tuple[str, str], EmbeddedSplit]
    texts: tuple[list[str], Float32[ndarray, "n D"]]
    seconds: dict[str, float]
    suite: SuiteResults | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Values by name."""
        return {figure.name: figure.value for figure in self.figures}

    @property
    def chance(self) -> dict[str, float]:
        """What guessing gives, by name."""
        return {figure.name: figure.chance for figure in self.figures}

    def table(self) -> str:
        """The figures as lines of text: name, value, chance."""
        width = max((len(figure.name) for figure in self.figures), default=0)
        lines = [f"{'':{width}}   value  chance"]
        lines += [
            f"{name:{width}}  {shown(name, value):>6}  {shown(name, chance):>6}"
            for name, value, chance in self.figures
        ]
        return "\n".join(lines)

    @property
    def datasets(self) -> dict[str, dict[str, Any]]:
        """By "dataset/split": the content hash, and how many pictures were used and skipped."""
        return {
            f"{dataset}/{name}": {
                "content_hash": split.content_hash,
                "count": len(split.index),
                "skipped": split.skipped,
            }
            for (dataset, name), split in self.splits.items()
        }

    @property
    def prompts(self) -> dict[str, dict[str, Any]]:
        """By prompt set that was used: its templates and their hash."""
        used = sorted({each.prompts for each in self.config.zero_shot})
        return {
            name: {"templates": list(PROMPTS[name]), "sha256": prompt_hash(PROMPTS[name])}
            for name in used
        }


def check_datasets(config: EvalConfig, data_dir: str) -> None:
    """Opens every split that `config` asks for, so that a long run does not end at a missing one.

    Raises:
      DatasetError: a dataset or split is unknown or not prepared, or lacks a label.
    """
    wanted: dict[tuple[str, str], dict[str, str]] = {}  # (dataset, split) -> label -> who asks
    for ask in config.retrieval:
        wanted.setdefault((ask.dataset, ask.split), {})
    for task in config.zero_shot:
        wanted.setdefault((task.dataset, task.split), {})[task.label] = task.name
    for probe in config.linear_probe:
        for name in (probe.train_split, probe.test_split, probe.validation_split):
            if name is not None:
                wanted.setdefault((probe.dataset, name), {})[probe.label] = probe.name
    for (dataset, split), labels in sorted(wanted.items()):
        source = open_dataset(dataset, split, data_dir)
        for label, who in labels.items():
            if label not in source.class_names:
                known = sorted(source.class_names) or "none"
                raise DatasetError(
                    f"{source.name} has no label {label!r}, which {who} is to tell apart; name"
                    f" another in the config, its labels: {known}"
                )
    check_on_disk(tasks_of(config.suite), Protocol(config.suite_mode), data_dir)


def to_standard_error(line: str) -> None:
    """Says a line where progress is shown."""
    print(line, file=sys.stderr, flush=True)


def evaluate(
    embedder: Embedder,
    config: EvalConfig,
    data_dir: str,
    *,
    say: Say = to_standard_error,
    class_cache: ClassCache | None = None,
) -> Evaluation:
    """Embeds each split once, then measures what `config` asks for.

    Args:
      embedder: encodes pictures and texts; its text features are kept for the report.
      config: the evaluators.
      data_dir: where prepared datasets lie.
      say: is given a line about each step.
      class_cache: class features of the same embedder that were computed before.

    Raises:
      ValueError: a dataset or split is unknown or not prepared (its subclass `DatasetError`), or
        lacks the texts or the label that an evaluator needs; or the features are not finite.
    """
    splits: dict[tuple[str, str], EmbeddedSplit] = {}
    seconds: dict[str, float] = {}
    figures: list[Figure] = []

    def pictures(dataset: str, split: str) -> EmbeddedSplit:
        if (dataset, split) not in splits:
            started = time.monotonic()
            embedded = embedder.pictures(open_dataset(dataset, split, data_dir))
            splits[dataset, split] = embedded
            took = seconds[f"encode/{dataset}/{split}"] = time.monotonic() - started
            broken = f", {embedded.skipped} broken" if embedded.skipped else ""
            say(
                f"encoded {len(embedded.index)} pictures of {embedded.name} in {took:.1f} s{broken}"
            )
        return splits[dataset, split]

    def measure(name: str, lazily: Iterable[Figure]) -> None:
        started = time.monotonic()
        new = list(lazily)
        figures.extend(new)
        took = seconds[name] = time.monotonic() - started
        first = ", ".join(
            f"{full.removeprefix(name + '/')} {shown(full, value)} (chance {shown(full, chance)})"
            for full, value, chance in new[:6]
        )
        say(f"{name}: {first} [{took:.1f} s]")

    for ask in config.retrieval:
        measure(ask.name, retrieval(embedder.texts, pictures(ask.dataset, ask.split), ask))
    for task in config.zero_shot:
        split = pictures(task.dataset, task.split)
        measure(task.name, zero_shot(embedder.texts, split, task, cache=class_cache))
    for probe in config.linear_probe:
        train = pictures(probe.dataset, probe.train_split)
        test = pictures(probe.dataset, probe.test_split)
        name = probe.validation_split
        validation = pictures(probe.dataset, name) if name else None
        measure(probe.name, linear_probe(train, test, probe, validation=validation))
    texts = embedder.known_texts()  # for the report, which does not show the suite
    suite = None
    if config.suite:
        started = time.monotonic()
        tasks = tasks_of(config.suite)
        suite = run_suite(
            embedder, tasks, Protocol(config.suite_mode), data_dir, say=say, cache=class_cache
        )
        for problem in (*suite.missing.values(), *suite.failed.values()):
            raise ValueError(problem)
        for each in suite.measured.values():
            figures.extend(each.to_figures())
        seconds["suite"] = time.monotonic() - started
    return Evaluation(config, tuple(figures), splits, texts, seconds, suite)
