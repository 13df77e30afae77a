"""One task measured: features in, one `Measured` out."""

import dataclasses
import hashlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32

from rwkv_jax.evaluation.catalog.classes import Prompts, prompts_of
from rwkv_jax.evaluation.catalog.classification import CLASSIFICATION
from rwkv_jax.evaluation.catalog.entry import Part
from rwkv_jax.evaluation.catalog.find import open_captions, open_part, open_validation
from rwkv_jax.evaluation.catalog.karpathy import KarpathySource
from rwkv_jax.evaluation.catalog.labelled_folder import LABEL
from rwkv_jax.evaluation.catalog.retrieval_sets import RETRIEVAL
from rwkv_jax.evaluation.catalog.selection import Selection
from rwkv_jax.evaluation.class_cache import ClassCache
from rwkv_jax.evaluation.config import LinearProbeConfig, RetrievalConfig, ZeroShotConfig
from rwkv_jax.evaluation.features import EmbeddedSplit, EmbedTexts, unit_length
from rwkv_jax.evaluation.figure import Figure
from rwkv_jax.evaluation.linear_probe import linear_probe
from rwkv_jax.evaluation.probe.judge import JUDGES
from rwkv_jax.evaluation.reference_quirks import CAPTION_PREFIX
from rwkv_jax.evaluation.retrieval import retrieval
from rwkv_jax.evaluation.suite.measured import Measured, PartFacts
from rwkv_jax.evaluation.suite.protocol import Protocol
from rwkv_jax.evaluation.suite.tasks import Task
from rwkv_jax.evaluation.zero_shot import class_scores, zero_shot

PartSource = Selection | KarpathySource
Pictures = Callable[[Part], EmbeddedSplit]
FIGURE_OF = {"accuracy": "top_1", "mean_per_class": "mean_per_class"}


def open_parts(task: Task, protocol: Protocol, data_dir: str) -> dict[Part, PartSource]:
    """The parts that a task needs, opened.

    Raises:
      MissingSetError: the set is not on disk.
      DatasetError: it is, but not as it should be.
    """
    if task.kind == "retrieval":
        return {"test": open_captions(RETRIEVAL[task.dataset], protocol.mode, data_dir)}
    entry = CLASSIFICATION[task.dataset]
    mode = protocol.mode
    test = open_part(entry, "test", mode, data_dir)
    if task.kind == "zero_shot":
        return {"test": test}
    parts: dict[Part, PartSource] = {"train": open_part(entry, "train", mode, data_dir)}
    if (validation := open_validation(entry, mode, data_dir)) is not None:
        parts["validation"] = validation
    return {**parts, "test": test}


def settings_of(task: Task, protocol: Protocol) -> dict[str, Any]:
    """Everything beside the pictures and the parameters that a task's result depends on."""
    if task.kind == "retrieval":
        return {"switches": dataclasses.asdict(_retrieval_config(task, protocol))}
    if task.kind == "linear_probe":
        return {"switches": dataclasses.asdict(_probe_config(task))}
    return {
        "switches": dataclasses.asdict(_zero_shot_config(task, protocol)),
        "prompts": _prompts(task, protocol).sha256,
    }


def measure(
    task: Task,
    protocol: Protocol,
    sources: dict[Part, PartSource],
    pictures: Pictures,
    embed_texts: EmbedTexts,
    cache: ClassCache | None = None,
) -> Measured:
    """Measures a task.

    Args:
      task: which.
      protocol: how.
      sources: what `open_parts` gave.
      pictures: the features of a part of the task's set.
      embed_texts: features of texts.
      cache: class features of the same model that were computed before.

    Raises:
      ValueError: the pictures lack what the evaluator needs, or it does not yield the set's metric.
    """
    splits = {part: pictures(part) for part in sources}
    facts = tuple(_facts(task, protocol, part, sources[part], splits[part]) for part in sources)
    started = time.monotonic()
    prompts: Prompts | None = None
    config: RetrievalConfig | LinearProbeConfig | ZeroShotConfig
    metric: str
    if task.kind == "retrieval":
        config, metric = _retrieval_config(task, protocol), "image_to_text/R@1"
        found = _named(retrieval(embed_texts, splits["test"], config), config.name)
        # with one kind of text, its figures are those of all texts once more
        found = [figure for figure in found if not figure.name.startswith("caption/")]
    elif task.kind == "linear_probe":
        config, metric = _probe_config(task), CLASSIFICATION[task.dataset].metric
        lazily = linear_probe(
            splits["train"], splits["test"], config, validation=splits.get("validation")
        )
        found = _named(lazily, config.name)
    else:
        config, metric = _zero_shot_config(task, protocol), CLASSIFICATION[task.dataset].metric
        prompts = _prompts(task, protocol)
        found = _zero_shot_figures(
            metric, config, splits["test"], ensembled(embed_texts, prompts, cache)
        )
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


def ensembled(
    embed_texts: EmbedTexts, prompts: Prompts, cache: ClassCache | None = None
) -> EmbedTexts:
    """Features of class names: of each, the normalised mean over its templates (and over its
    names, where it has several) of normalised features.
    """

    def compute() -> Float32[np.ndarray, "classes D"]:
        texts = [
            [template.replace("{}", name) for name in names for template in prompts.templates]
            for names in prompts.classes
        ]
        features = embed_texts([text for some in texts for text in some])
        ends = np.cumsum([len(some) for some in texts])[:-1]
        return unit_length(np.stack([part.mean(axis=0) for part in np.split(features, ends)]))

    words = [" | ".join(names) for names in prompts.classes]
    features = cache.get(words, prompts.templates, compute) if cache else compute()
    place = {title: i for i, title in enumerate(prompts.titles)}
    return lambda titles: features[[place[title] for title in titles]]


def _zero_shot_figures(
    metric: str,
    config: ZeroShotConfig,
    split: EmbeddedSplit,
    embed_classes: EmbedTexts,
) -> list[Figure]:
    if metric == "map_11":
        classes = embed_classes(split.class_names[LABEL])
        scores = split.features.astype(np.float64) @ classes.astype(np.float64).T
        truth = split.multi_label(LABEL)
        # of a random order the precision is the share of positives at every recall
        return [Figure(metric, JUDGES[metric](scores, truth), float(np.nanmean(truth)))]
    found = _named(zero_shot(embed_classes, split, config), config.name)
    if metric == "roc_auc":
        two, of_class = class_scores(embed_classes, split, config)
        found.append(Figure(metric, JUDGES[metric](two, of_class), 0.5))
    return found


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
    task: Task, protocol: Protocol, part: Part, source: PartSource, split: EmbeddedSplit
) -> PartFacts:
    if task.kind == "retrieval":
        expected = RETRIEVAL[task.dataset].count
    else:
        expected = CLASSIFICATION[task.dataset].parts_of(protocol.mode).count(part)
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


def _prompts(task: Task, protocol: Protocol) -> Prompts:
    parts = CLASSIFICATION[task.dataset].parts_of(protocol.mode)
    return prompts_of(task.dataset, parts.test.without)


def _retrieval_config(task: Task, protocol: Protocol) -> RetrievalConfig:
    prefix = CAPTION_PREFIX if "caption_prefix" in protocol.switches else ""
    return RetrievalConfig(task.dataset, "test", caption_prefix=prefix)


def _probe_config(task: Task) -> LinearProbeConfig:
    metric = CLASSIFICATION[task.dataset].metric
    return LinearProbeConfig(task.dataset, "train", "test", LABEL, metric)


def _zero_shot_config(task: Task, protocol: Protocol) -> ZeroShotConfig:
    # "plain": the templates are already in what `ensembled` gives for a name
    return ZeroShotConfig(
        task.dataset,
        "test",
        LABEL,
        prompts="plain",
        integer_logits="integer_logits" in protocol.switches,
        phantom_rows="phantom_rows" in protocol.switches and task.dataset == "imagenet",
    )
