"""Finding the picture of a text and a text of the picture, by cosine similarity.

What is right: a text belongs to a concept, and every picture of that concept in the split is a
right answer to it (a dataset without the label `concept` has one concept a picture). The other way
round, any text of the picture's own concept is a right answer. The same words under another
concept are not: they tie with the right ones, and ties count against the model (ranking.py has the
rule). Equal words of one concept are one text, though they may be of several kinds.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from rwkv_jax.evaluation import metrics
from rwkv_jax.evaluation.config import RetrievalConfig
from rwkv_jax.evaluation.features import EmbeddedSplit, EmbedTexts
from rwkv_jax.evaluation.figure import Figure
from rwkv_jax.evaluation.ranking import ranks


@dataclasses.dataclass(frozen=True)
class Texts:
    """The texts of a split, one entry for each (concept, words).

    Attributes:
      words: [T] the texts themselves.
      concept: [T] what each is about, in the numbering of `picture_concepts`.
      kinds: [T] which kinds each occurs as, e.g. {"name", "label"}.
    """

    words: tuple[str, ...]
    concept: Int[np.ndarray, " T"]
    kinds: tuple[frozenset[str], ...]

    def of_kind(self, kind: str) -> Int[np.ndarray, " t"]:
        """Indices of the texts that occur as `kind`."""
        return np.array([i for i, kinds in enumerate(self.kinds) if kind in kinds], np.int64)


def picture_concepts(split: EmbeddedSplit) -> Int[np.ndarray, " P"]:
    """A number for each picture's concept; one whose concept is unknown has its own, below 0."""
    alone = -1 - np.arange(len(split.index))
    known = np.array([labels.get("concept", -1) for labels in split.labels], np.int64)
    return np.where(known >= 0, known, alone)


def collect_texts(split: EmbeddedSplit, concepts: Int[np.ndarray, " P"]) -> Texts:
    """Every text of the split's pictures, in the order in which it first occurs."""
    kinds: dict[tuple[int, str], set[str]] = {}
    for concept, by_kind in zip(concepts.tolist(), split.texts, strict=True):
        for kind, texts in by_kind.items():
            for words in texts:
                kinds.setdefault((concept, words), set()).add(kind)
    return Texts(
        words=tuple(words for _, words in kinds),
        concept=np.array([concept for concept, _ in kinds], np.int64),
        kinds=tuple(frozenset(each) for each in kinds.values()),
    )


def occurrences(
    values: Int[np.ndarray, " n"], among: Int[np.ndarray, " m"]
) -> Int[np.ndarray, " n"]:
    """How often each of `values` occurs in `among`."""
    ordered = np.sort(among)
    return np.searchsorted(ordered, values, "right") - np.searchsorted(ordered, values, "left")


def with_prefix(embed_texts: EmbedTexts, prefix: str) -> EmbedTexts:
    """Embeds `prefix` + text for every text."""
    return lambda texts: embed_texts([prefix + text for text in texts])


def retrieval(
    embed_texts: EmbedTexts, split: EmbeddedSplit, config: RetrievalConfig
) -> Iterator[Figure]:
    """R@k, mean and median rank both ways over all texts, then for each kind of text alone.

    Yields "retrieval/SPLIT/text_to_image/R@10" (and the other k), ".../mean_rank" and
    ".../median_rank", the same for "image_to_text", then all of them for one kind,
    "retrieval/SPLIT/KIND/text_to_image/R@10". Every text is a query to all pictures; every picture
    is a query to all texts (of that kind), and any own text among the first k is a hit. A rank is
    that of the best right answer among the wrong ones, ties counted against it.

    Raises:
      ValueError: the split has no texts.
    """
    concepts = picture_concepts(split)
    texts = collect_texts(split, concepts)
    if not texts.words:
        raise ValueError(f"{split.name} has no texts, so retrieval cannot be measured on it")
    features = with_prefix(embed_texts, config.caption_prefix)(texts.words)
    text_ranks = ranks(features, texts.concept, split.features, concepts)
    text_positives = occurrences(texts.concept, concepts)

    selections = {"": np.arange(len(texts.words))}
    selections |= {f"{kind}/": texts.of_kind(kind) for kind in split.text_kinds}
    for prefix, chosen in selections.items():
        if not chosen.size:
            continue
        name = f"{config.name}/{prefix}"
        yield from _figures(
            f"{name}text_to_image",
            text_ranks[chosen],
            text_positives[chosen],
            len(concepts),
            config.ks,
        )
        own_texts = occurrences(concepts, texts.concept[chosen])
        asked = own_texts > 0  # a picture without a text of this kind is no query
        image_ranks = ranks(
            split.features[asked], concepts[asked], features[chosen], texts.concept[chosen]
        )
        yield from _figures(
            f"{name}image_to_text", image_ranks, own_texts[asked], len(chosen), config.ks
        )


def _figures(
    name: str,
    found: Int[np.ndarray, " Q"],
    positives: Int[np.ndarray, " Q"],
    candidates: int,
    ks: tuple[int, ...],
) -> Iterator[Figure]:
    for k in ks:
        chance = metrics.chance_recall_at_k(positives, candidates, k)
        yield Figure(f"{name}/R@{k}", metrics.recall_at_k(found, k), chance)
    mean_chance = metrics.chance_mean_rank(positives, candidates)
    yield Figure(f"{name}/mean_rank", float(np.mean(found)), mean_chance)
    median_chance = metrics.chance_median_rank(positives, candidates)
    yield Figure(f"{name}/median_rank", float(np.median(found)), median_chance)
