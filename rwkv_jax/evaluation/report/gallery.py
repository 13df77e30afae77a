"""Texts and the pictures that the model finds for them: a seeded draw, not a choice."""

import dataclasses

import numpy as np

from rwkv_jax.data.records import Source
from rwkv_jax.evaluation.config import RetrievalConfig
from rwkv_jax.evaluation.features import EmbeddedSplit, EmbedTexts
from rwkv_jax.evaluation.ranking import ranks, similarity
from rwkv_jax.evaluation.report.thumbnails import thumbnail
from rwkv_jax.evaluation.retrieval import collect_texts, picture_concepts

QUERIES = 12
SHOWN = 5
SIDE = 72  # pixels of a thumbnail
SEED = 0


@dataclasses.dataclass(frozen=True)
class Found:
    """A picture in the order of nearness: its data URI, what it shows, its cosine, whether
    right.
    """

    image: str
    shows: str
    similarity: float
    hit: bool


@dataclasses.dataclass(frozen=True)
class Query:
    """A text, its kind, the nearest pictures, the rank of the right one, and that one if not
    shown.
    """

    text: str
    kind: str
    found: tuple[Found, ...]
    rank: int
    right: Found | None


@dataclasses.dataclass(frozen=True)
class Gallery:
    """The queries of one split, and how they were drawn."""

    title: str
    pictures: int
    texts: int
    queries: tuple[Query, ...]


def gallery(
    config: RetrievalConfig, split: EmbeddedSplit, source: Source, embed_texts: EmbedTexts
) -> Gallery:
    """`QUERIES` texts drawn by `SEED` from all texts of the split, each with its nearest
    pictures.
    """
    concepts = picture_concepts(split)
    texts = collect_texts(split, concepts)
    count = min(QUERIES, len(texts.words))
    drawn = np.sort(np.random.default_rng(SEED).choice(len(texts.words), count, replace=False))
    features = embed_texts([texts.words[i] for i in drawn])
    scores = similarity(features, split.features)
    places = ranks(features, texts.concept[drawn], split.features, concepts)

    def found(row: int, picture: int) -> Found:
        return Found(
            image=thumbnail(source, int(split.index[picture]), SIDE),
            shows=what_it_shows(split, picture),
            similarity=float(scores[row, picture]),
            hit=bool(concepts[picture] == texts.concept[drawn[row]]),
        )

    queries = []
    for row, text in enumerate(drawn):
        order = np.argsort(-scores[row], kind="stable")
        nearest = tuple(found(row, picture) for picture in order[:SHOWN])
        right = next(picture for picture in order if concepts[picture] == texts.concept[text])
        queries.append(
            Query(
                text=texts.words[text],
                kind=" = ".join(sorted(texts.kinds[text])),
                found=nearest,
                rank=int(places[row]),
                right=None if any(each.hit for each in nearest) else found(row, right),
            )
        )
    title = f"Texts looking for pictures: {config.split.replace('_', ' ')}"
    return Gallery(title, len(concepts), len(texts.words), tuple(queries))


def what_it_shows(split: EmbeddedSplit, picture: int) -> str:
    """The picture's first text, for those who do not see it."""
    texts = [text for kind in split.texts[picture].values() for text in kind]
    return texts[0] if texts else split.keys[picture]
