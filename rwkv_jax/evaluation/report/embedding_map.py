"""A map of the space that pictures and texts share.

Pictures and texts of a contrastive model lie in two separate cones (the modality gap: Liang et al.
2022). Retrieval does not mind, a map would show nothing else; so the mean of each is taken off.
"""

import dataclasses

import numpy as np

from rwkv_jax.data.records import Source
from rwkv_jax.evaluation.features import EmbeddedSplit, EmbedTexts, unit_length
from rwkv_jax.evaluation.report.gallery import what_it_shows
from rwkv_jax.evaluation.report.thumbnails import thumbnail

PICTURES = 320
SIDE = 32  # pixels of a thumbnail
SEED = 0
MOST_CLASSES = 12  # more colours cannot be told apart
WIDTH, HEIGHT, MARGIN = 1000, 700, 24


@dataclasses.dataclass(frozen=True)
class Pair:
    """A picture and its first text: places on the map, the class's number (-1: none)."""

    image: str
    text: str
    x: float
    y: float
    text_x: float
    text_y: float
    label: int


@dataclasses.dataclass(frozen=True)
class EmbeddingMap:
    """The pairs, and the names of the classes that colour them."""

    split: str
    pairs: tuple[Pair, ...]
    class_names: tuple[str, ...]
    width: int = WIDTH
    height: int = HEIGHT


def embedding_map(
    split_name: str, split: EmbeddedSplit, source: Source, embed_texts: EmbedTexts
) -> EmbeddingMap | None:
    """Up to `PICTURES` pictures, drawn by `SEED`, with the first text of each; None if too few."""
    # A second of importing, which runs without a report need not wait for.
    from sklearn.manifold import TSNE

    with_text = np.array([i for i, texts in enumerate(split.texts) if any(texts.values())])
    if len(with_text) < 40:
        return None
    count = min(PICTURES, len(with_text))
    drawn = np.sort(np.random.default_rng(SEED).choice(with_text, count, replace=False))
    words = [what_it_shows(split, i) for i in drawn]
    pictures, texts = split.features[drawn], embed_texts(words)
    centred = [unit_length(each - each.mean(axis=0)) for each in (pictures, texts)]
    # Starting from principal components keeps the large-scale arrangement, and makes one map of
    # one set of features (Kobak and Berens 2019).
    tsne = TSNE(perplexity=20, init="pca", random_state=SEED)
    places = tsne.fit_transform(np.concatenate(centred))  # [2 count, 2]
    low, high = places.min(axis=0), places.max(axis=0)
    scale = np.array([WIDTH - 2 * MARGIN - SIDE, HEIGHT - 2 * MARGIN - SIDE])
    places = MARGIN + SIDE / 2 + (places - low) / (high - low) * scale

    label = colouring_label(split)
    classes = split.label(label)[drawn] if label else np.full(count, -1)
    pairs = tuple(
        Pair(
            image=thumbnail(source, int(split.index[drawn[i]]), SIDE),
            text=words[i],
            x=float(places[i, 0]),
            y=float(places[i, 1]),
            text_x=float(places[count + i, 0]),
            text_y=float(places[count + i, 1]),
            label=int(classes[i]),
        )
        for i in range(count)
    )
    return EmbeddingMap(split_name, pairs, split.class_names[label] if label else ())


def colouring_label(split: EmbeddedSplit) -> str | None:
    """The label with the most classes that can still be told apart by colour, if several occur."""
    usable = [
        name
        for name, classes in split.class_names.items()
        if len(classes) <= MOST_CLASSES and len(set(split.label(name)) - {-1}) > 1
    ]
    return max(usable, key=lambda name: len(split.class_names[name]), default=None)
