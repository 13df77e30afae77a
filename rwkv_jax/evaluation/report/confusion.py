"""Which classes zero-shot classification takes for which."""

import dataclasses

import numpy as np

from rwkv_jax.evaluation import metrics
from rwkv_jax.evaluation.config import ZeroShotConfig
from rwkv_jax.evaluation.features import EmbeddedSplit, EmbedTexts
from rwkv_jax.evaluation.zero_shot import class_scores

MOST_CLASSES = 24  # more cannot be read


@dataclasses.dataclass(frozen=True)
class Row:
    """One true class: its name, its count, and (count, share of the row) for each answer."""

    name: str
    total: int
    cells: tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True)
class Confusion:
    """A matrix of true classes (rows) and answers (columns)."""

    title: str
    names: tuple[str, ...]
    rows: tuple[Row, ...]


def confusion(
    config: ZeroShotConfig, split: EmbeddedSplit, embed_texts: EmbedTexts
) -> Confusion | None:
    """The matrix of one zero-shot task, None where it has too many classes to show."""
    names = split.class_names[config.label]
    if len(names) > MOST_CLASSES:
        return None
    scores, labels = class_scores(embed_texts, split, config)
    counts = metrics.confusion_matrix(scores.argmax(axis=1), labels, len(names))
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    rows = tuple(
        Row(name, int(total), tuple(zip(count.tolist(), share.tolist(), strict=True)))
        for name, total, count, share in zip(names, totals, counts, shares, strict=True)
    )
    title = f"{config.label.replace('_', ' ')} on {config.split.replace('_', ' ')}"
    return Confusion(title, names, rows)
