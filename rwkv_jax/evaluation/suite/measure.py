"""One task measured: features in, one `Measured` out."""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from rwkv_jax.evaluation import score_metrics
from rwkv_jax.evaluation.catalog.classes import Prompts, prompts_of
from rwkv_jax.evaluation.catalog.classification import CLASSIFICATION
from rwkv_jax.evaluation.catalog.entry import ClassificationSet, Mode
from rwkv_jax.evaluation.catalog.find import Part, open_captions, open_part
from rwkv_jax.evaluation.catalog.karpathy import KarpathySource
from rwkv_jax.evaluation.catalog.labelled_folder import LABEL
from rwkv_jax.evaluation.catalog.retrieval_sets import RETRIEVAL
from rwkv_jax.evaluation.catalog.selection import Selection
from rwkv_jax.evaluation.config import LinearProbeConfig, RetrievalConfig, ZeroShotConfig
from rwkv_jax.evaluation.features import EmbeddedSplit, EmbedTexts, unit_length
from rwkv_jax.evaluation.figure import Figure
from rwkv_jax.evaluation.linear_probe import linear_probe
from rwkv_jax.evaluation.retrieval import retrieval
from rwkv_jax.evaluation.suite.measured import Measured, PartFacts
from rwkv_jax.evaluation.suite.tasks import Task
from rwkv_jax.evaluation.zero_shot import class_scores, zero_shot

PartSource = Selection | KarpathySource
Pictures = Callable[[Part], EmbeddedSplit]
ALL_ROWS = 10**9  # the probe fits on every picture
FIGURE_OF = {"accuracy": "top_1", "mean_per_class": "mean_per_class"}


def open_parts(task: Task, mode: Mode, data_dir: str) -> dict[Part, PartSource]:
    """The parts that a task needs, opened.

    Raises:
      MissingSetError: the set is not on disk.
      DatasetError: it is, but not as it should be.
    """
    if task.kind == "retrieval":
        return {"test": open_captions(RETRIEVAL[task.dataset], mode, data_dir)}
    entry = CLASSIFICATION[task.dataset]
    wanted: tuple[Part, ...] = ("train", "test") if task.kind == "linear_probe" else ("test",)
    return {part: open_part(entry, part, mode, data_dir) for part in wanted}


def settings_of(task: Task, mode: Mode) -> dict[str, Any]:
    """Everything beside the pictures and the parameters that a task's result depends on."""
    if task.kind == "retrieval":
        return {"switches": dataclasses.asdict(_retrieval_config(task))}
    if task.kind == "linear_probe":
        return {"switches": dataclasses.asdict(_probe_config(task))}
    return {
        "switches": dataclasses.asdict(_zero_shot_config(task)),
        "prompts": _prompts(CLASSIFICATION[task.dataset], mode).sha256,
    }


def measure(
    task: Task,
    mode: Mode,
    sources: dict[Part, PartSource],
    pictures: Pictures,
    embed_texts: EmbedTexts,
) -> Measured:
    """Measures a task.

    Args:
      task: which.
      mode: whose protocol.
      sources: what `open_parts` gave.
      pictures: the features of a part of the task's set.
      embed_texts: features of texts.

    Raises:
      ValueError: the pictures lack what the evaluator needs, or it does not yield the set's metric.
    """
    splits = {part: pictures(part) for part in sources}
    facts = tuple(_facts(task, mode, part, sources[part], splits[part]) for part in sources)
    started = time.monotonic()
    prompts: Prompts | None = None
    config: RetrievalConfig | LinearProbeConfig | ZeroShotConfig
    metric: str
    if task.kind == "retrieval":
        config, metric = _retrieval_config(task), "image_to_text/R@1"
        found = _named(retrieval(embed_texts, splits["test"], config), config.name)
        # with one kind of text, its figures are those of all texts once more
        found = [figure for figure in found if not figure.name.startswith("caption/")]
    elif task.kind == "linear_probe":
        config, metric = _probe_config(task), CLASSIFICATION[task.dataset].metric
        found = _named(linear_probe(splits["train"], splits["test"], config), config.name)
    else:
        config, metric = _zero_shot_config(task), CLASSIFICATION[task.dataset].metric
        prompts = _prompts(CLASSIFICATION[task.dataset], mode)
        found = _zero_shot_figures(metric, config, splits["test"], embed_texts, prompts)
    found = _with_headline(task, metric, found)
    headline = next(figure for figure in found if figure.name == metric)
    return Measured(
        task=task.name,
        metric=metric,
        value=headline.value,
        chance=headline.chance,
        figures={figure.name: figure.value for figure in found},
        chances={figure.name: figure.chance for figure in found},
        parts=facts,
        prompts=None
        if prompts is None
        else {"templates": list(prompts.templates), "sha256": prompts.sha256},
        switches=dataclasses.asdict(config),
        seconds=round(time.monotonic() - started, 3),
    )


def ensembled(embed_texts: EmbedTexts, prompts: Prompts) -> EmbedTexts:
    """Features of class names: of each, the normalised mean over its templates (and over its
    names, where it has several) of normalised features.
    """
    names_of = dict(zip(prompts.titles, prompts.classes, strict=True))

    def embed(titles: Sequence[str]) -> Float32[np.ndarray, "n D"]:
        texts = [
            [
                template.replace("{}", name)
                for name in names_of[title]
                for template in prompts.templates
            ]
            for title in titles
        ]
        features = embed_texts([text for some in texts for text in some])
        ends = np.cumsum([len(some) for some in texts])[:-1]
        return unit_length(np.stack([part.mean(axis=0) for part in np.split(features, ends)]))

    return embed


def _zero_shot_figures(
    metric: str,
    config: ZeroShotConfig,
    split: EmbeddedSplit,
    embed_texts: EmbedTexts,
    prompts: Prompts,
) -> list[Figure]:
    embed_classes = ensembled(embed_texts, prompts)
    if metric == "map_11":
        classes = embed_classes(prompts.titles)
        scores = split.features.astype(np.float64) @ classes.astype(np.float64).T
        labels = several_labels(split, prompts.titles)
        value = score_metrics.mean_average_precision(scores, labels)
        return [Figure(metric, value, score_metrics.chance_mean_average_precision(labels))]
    found = _named(zero_shot(embed_classes, split, config), config.name)
    if metric == "roc_auc":
        two, of_class = class_scores(embed_classes, split, config)
        found.append(Figure(metric, score_metrics.roc_auc(two[:, 1] - two[:, 0], of_class), 0.5))
    return found


def several_labels(split: EmbeddedSplit, titles: Sequence[str]) -> Int[np.ndarray, "P classes"]:
    """1, 0 or -1 (unknown) for each class of each picture, where it may have several."""
    rows = [[labels[f"{LABEL}/{title}"] for title in titles] for labels in split.labels]
    return np.array(rows, np.int64)


def _with_headline(task: Task, metric: str, found: list[Figure]) -> list[Figure]:
    """The figures with the one that the tables show among them, under the metric's name."""
    by_name = {figure.name: figure for figure in found}
    if metric in by_name:
        return found
    if metric == "top_1_5" and {"top_1", "top_5"} <= by_name.keys():
        first, fifth = by_name["top_1"], by_name["top_5"]
        mean = (first.value + fifth.value) / 2
        return [*found, Figure(metric, mean, (first.chance + fifth.chance) / 2)]
    if (figure := by_name.get(FIGURE_OF.get(metric, ""))) is not None:
        return [*found, figure._replace(name=metric)]
    raise ValueError(
        f"{task.name} is to be judged by {metric}, but the evaluator yields {', '.join(by_name)}"
    )


def _named(figures: Any, prefix: str) -> list[Figure]:
    return [each._replace(name=each.name.removeprefix(f"{prefix}/")) for each in figures]


def _facts(
    task: Task, mode: Mode, part: Part, source: PartSource, split: EmbeddedSplit
) -> PartFacts:
    if task.kind == "retrieval":
        expected = RETRIEVAL[task.dataset].count
    else:
        parts = CLASSIFICATION[task.dataset].parts_of(mode)
        expected = parts.train_count if part == "train" else parts.test_count
    keys = "\n".join(sorted(split.keys))
    return PartFacts(
        part=part,
        source=source.name,
        split=source.split,
        content_hash=source.content_hash,
        keys_sha256=hashlib.sha256(keys.encode()).hexdigest(),
        count=len(split.index),
        expected=expected,
        skipped=split.skipped,
    )


def _prompts(entry: ClassificationSet, mode: Mode) -> Prompts:
    return prompts_of(entry.name, entry.parts_of(mode).test.without)


def _retrieval_config(task: Task) -> RetrievalConfig:
    return RetrievalConfig(task.dataset, "test")


def _probe_config(task: Task) -> LinearProbeConfig:
    return LinearProbeConfig(task.dataset, "train", "test", LABEL, max_train=ALL_ROWS)


def _zero_shot_config(task: Task) -> ZeroShotConfig:
    # "plain": the templates are already in what `ensembled` gives for a name
    return ZeroShotConfig(task.dataset, "test", LABEL, prompts="plain")
