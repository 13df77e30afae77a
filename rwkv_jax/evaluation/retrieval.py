"""Finding the picture of a text and a text of the picture, by cosine similarity.

What is right: a text belongs to a concept, and every picture of that concept in the split is a
right answer to it (a dataset without the label `concept` has one concept a picture). The other way
round, any text of the picture's own concept is a right answer. The same words under another
concept are not: they tie with the right ones, and ties count against the model. Equal words of one
concept are one text, though they may be of several kinds.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from rwkv_jax.evaluation import metrics
from rwkv_jax.evaluation.config import RetrievalConfig
from rwkv_jax.evaluation.features import EmbeddedSplit, EmbedTexts
from rwkv_jax.evaluation.figure import Figure

CHUNK = 1024  # queries compared with all candidates at once: bounds memory


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


def similarity(
    queries: Float[np.ndarray, "Q D"], candidates: Float[np.ndarray, "C D"]
) -> Float[np.ndarray, "Q C"]:
    """Cosine similarities, float32. Summed in float64, so that equal candidates tie wherever BLAS
    puts them.
    """
    return (queries.astype(np.float64) @ candidates.astype(np.float64).T).astype(np.float32)


def ranks(
    queries: Float[np.ndarray, "Q D"],
    query_concept: Int[np.ndarray, " Q"],
    candidates: Float[np.ndarray, "C D"],
    candidate_concept: Int[np.ndarray, " C"],
) -> Int[np.ndarray, " Q"]:
    """Where each query's best candidate of its own concept stands, from 1, ties counted against
    it.
    """
    parts = [
        metrics.best_positive_rank(
            similarity(queries[i : i + CHUNK], candidates),
            query_concept[i : i + CHUNK, None] == candidate_concept,
        )
        for i in range(0, len(queries), CHUNK)
    ]
    return np.concatenate(parts)


def occurrences(
    values: Int[np.ndarray, " n"], among: Int[np.ndarray, " m"]
) -> Int[np.ndarray, " n"]:
    """How often each of `values` occurs in `among`."""
    ordered = np.sort(among)
    return np.searchsorted(ordered, values, "right") - np.searchsorted(ordered, values, "left")


def retrieval(
    embed_texts: EmbedTexts, split: EmbeddedSplit, config: RetrievalConfig
) -> Iterator[Figure]:
    """R@k both ways over all texts, then for each kind of text alone.

    Yields "retrieval/SPLIT/text_to_image/R@10" and "retrieval/SPLIT/image_to_text/R@10" (and the
    other k), then the same for one kind, "retrieval/SPLIT/KIND/text_to_image/R@10". Every text is
    a query to all pictures; every picture is a query to all texts (of that kind), and any own text
    among the first k is a hit.

    Raises:
      ValueError: the split has no texts.
    """
    concepts = picture_concepts(split)
    texts = collect_texts(split, concepts)
    if not texts.words:
        raise ValueError(f"{split.name} has no texts, so retrieval cannot be measured on it")
    features = embed_texts(texts.words)
    text_ranks = ranks(features, texts.concept, split.features, concepts)
    text_positives = occurrences(texts.concept, concepts)

    selections = {"": np.arange(len(texts.words))}
    selections |= {f"{kind}/": texts.of_kind(kind) for kind in split.text_kinds}
    for prefix, chosen in selections.items():
        if not chosen.size:
            continue
        name = f"{config.name}/{prefix}"
        for k in config.ks:
            chance = metrics.chance_recall_at_k(text_positives[chosen], len(concepts), k)
            value = metrics.recall_at_k(text_ranks[chosen], k)
            yield Figure(f"{name}text_to_image/R@{k}", value, chance)

        own_texts = occurrences(concepts, texts.concept[chosen])
        asked = own_texts > 0  # a picture without a text of this kind is no query
        image_ranks = ranks(
            split.features[asked], concepts[asked], features[chosen], texts.concept[chosen]
        )
        for k in config.ks:
            chance = metrics.chance_recall_at_k(own_texts[asked], len(chosen), k)
            value = metrics.recall_at_k(image_ranks, k)
            yield Figure(f"{name}image_to_text/R@{k}", value, chance)
