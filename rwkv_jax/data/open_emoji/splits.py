"""Which picture goes where: decided by the concept and the artist alone, never by chance.

A fixed 15% of the concepts are held out from every artist. They are drawn in groups of the same
name without gender words, so that "man running" cannot be trained on while "woman running" is new.
"""

import hashlib
import re

from rwkv_jax.data.open_emoji.sources import NEW_ARTIST

HELD_OUT_SHARE = 0.15
SPLITS = {
    "train": "five artists, concepts that are not held out",
    "new_artist": f"{NEW_ARTIST}, concepts seen in training",
    "new_concepts": f"{NEW_ARTIST}, held-out concepts",
    "new_concepts_known_artists": "the five training artists, held-out concepts (for tuning)",
}

# Words that say who does it rather than what is done; "and" joins two of them.
_WHO = frozenset(
    ["man", "woman", "person", "men", "women", "people", "boy", "girl", "child", "adult"]
) | {"and", "santa", "mrs", "mx"}
_SAME = {"princess": "prince", "mermaid": "merperson", "merman": "merperson", "older": "old"}


def concept_group(label: str) -> str:
    """What is held out together: "running" for "man running: facing right"; "person" for "girl"."""
    plain = label.lower().replace("\u2019", "'").replace("'s", "").replace("facing right", "")
    words = [_SAME.get(word, word) for word in re.findall(r"[^\s:,.]+", plain)]
    return " ".join(word for word in words if word not in _WHO) or "person"


def is_held_out(label: str) -> bool:
    """Whether the concept is kept out of training: by a hash of its group, so fixed for ever."""
    digest = hashlib.sha256(concept_group(label).encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def split_of(artist: str, label: str, seen: bool) -> str | None:
    """The split of a picture, or None: noto's picture of a concept that no training artist drew.

    Args:
      artist: who drew it.
      label: of the concept.
      seen: whether a training artist drew the concept.
    """
    if is_held_out(label):
        return "new_concepts" if artist == NEW_ARTIST else "new_concepts_known_artists"
    if artist != NEW_ARTIST:
        return "train"
    return "new_artist" if seen else None
