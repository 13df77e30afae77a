"""Classification without training: the class whose name is nearest to the picture.

A class's feature is the normalised mean of the normalised features of its name in every template
(prompt ensemble: Radford et al. 2021, section 3.1.4). All classes of the dataset stand to choose,
those without a picture in the split too; `mean_per_class` averages over those with one. Logits are
float32, and equal ones count against the model, unless a switch of the config says otherwise.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32, Int

from rwkv_jax.evaluation import metrics, reference_quirks
from rwkv_jax.evaluation.class_cache import ClassCache
from rwkv_jax.evaluation.config import ZeroShotConfig
from rwkv_jax.evaluation.features import EmbeddedSplit, EmbedTexts, unit_length
from rwkv_jax.evaluation.figure import Figure
from rwkv_jax.evaluation.prompts import PROMPTS
from rwkv_jax.evaluation.ranking import similarity


def class_features(
    embed_texts: EmbedTexts, class_names: Sequence[str], templates: Sequence[str]
) -> Float32[np.ndarray, "classes D"]:
    """Features of length 1 of every class, averaged over the templates."""
    prompts = [template.replace("{}", name) for name in class_names for template in templates]
    features = embed_texts(prompts)
    # [classes * templates, D] -> [classes, templates, D]
    by_class = features.reshape(len(class_names), len(templates), features.shape[-1])
    return unit_length(by_class.mean(axis=1))


def class_scores(
    embed_texts: EmbedTexts,
    split: EmbeddedSplit,
    config: ZeroShotConfig,
    cache: ClassCache | None = None,
) -> tuple[Float32[np.ndarray, "n classes"], Int[np.ndarray, " n"]]:
    """Similarity to every class, and the true class, of each picture whose class is known.

    Raises:
      ValueError: the dataset has no such label, or no picture of the split has it.
    """
    labels = split.label(config.label)
    known = labels >= 0
    if not known.any():
        raise ValueError(f"no picture of {split.name} has a known {config.label!r}")
    names, templates = split.class_names[config.label], PROMPTS[config.prompts]

    def compute() -> Float32[np.ndarray, "classes D"]:
        return class_features(embed_texts, names, templates)

    classes = cache.get(names, templates, compute) if cache else compute()
    return similarity(split.features[known], classes), labels[known]


def zero_shot(
    embed_texts: EmbedTexts,
    split: EmbeddedSplit,
    config: ZeroShotConfig,
    *,
    cache: ClassCache | None = None,
) -> Iterator[Figure]:
    """Figures named "zero_shot/SPLIT/LABEL/top_1", ".../top_5" and ".../mean_per_class".

    Args:
      embed_texts: gives texts' features.
      split: the pictures.
      config: what is asked for; its switches reproduce the authors' code (reference_quirks.py).
      cache: class features that were computed before.
    """
    scores, labels = class_scores(embed_texts, split, config, cache)
    classes = scores.shape[1]
    if config.integer_logits:
        scores = reference_quirks.integer_logits(scores)
        place = reference_quirks.first_of_equals_rank(scores, labels)
    else:
        place = metrics.label_rank(scores, labels)
    if config.phantom_rows:
        phantoms = reference_quirks.phantom_rows(len(labels))
        place = np.concatenate([place, np.ones(phantoms, place.dtype)])
        labels = np.concatenate([labels, np.zeros(phantoms, labels.dtype)])
    for k in config.ks:
        chance = min(k / classes, 1.0)
        yield Figure(f"{config.name}/top_{k}", metrics.recall_at_k(place, k), chance)
    mean = metrics.mean_per_class_accuracy(place == 1, labels)
    yield Figure(f"{config.name}/mean_per_class", mean, 1 / classes)
