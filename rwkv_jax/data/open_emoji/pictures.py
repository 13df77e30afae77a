"""Tarballs in, pictures out: every drawing with its emoji and its split, not yet rendered."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rwkv_jax.data.open_emoji.download import read_json
from rwkv_jax.data.open_emoji.emoji import Emoji, read_emojis
from rwkv_jax.data.open_emoji.fxemoji_names import FXEMOJI_LABELS
from rwkv_jax.data.open_emoji.icons import IconSet, code_points
from rwkv_jax.data.open_emoji.matching import match_by_code, match_by_name, names_in_sets
from rwkv_jax.data.open_emoji.sources import MATCHED_BY_NAME, NEW_ARTIST, Sources
from rwkv_jax.data.open_emoji.splits import is_held_out, split_of


@dataclass(frozen=True)
class Picture:
    """Attributes:
    artist: a key of `Sources.artists`.
    emoji: what it shows.
    svg: how it is drawn.
    split: a key of `splits.SPLITS`.
    """

    artist: str
    emoji: Emoji
    svg: str
    split: str

    @property
    def key(self) -> str:
        """Unique, e.g. "twemoji/2764 red heart"."""
        return f"{self.artist}/{self.emoji.code} {self.emoji.label}"


def read_pictures(
    sources: Sources, tarballs: dict[str, Path]
) -> tuple[list[Picture], list[Emoji], Counter[str]]:
    """Reads all pictures, sorted by key; all emojis; and how many pictures are left out, by reason.

    Args:
      sources: the packages.
      tarballs: their paths by `Package.spec`.

    Raises:
      DatasetError: a tarball is broken or lacks a file.
    """
    data, messages, groups, unicode_names, shortcodes = read_json(
        tarballs[sources.emojibase.spec],
        "en/data.json",
        "en/messages.json",
        "meta/groups.json",
        "meta/unicode-names.json",
        # JoyPixels is what Emoji One became.
        "en/shortcodes/joypixels.json",
    )
    (keywords,) = read_json(tarballs[sources.emojilib.spec], "dist/emoji-en-US.json")
    emojis = read_emojis(data, messages, groups, unicode_names, keywords)
    sets = {
        artist: IconSet.from_json(*read_json(tarballs[package.spec], "icons.json", "chars.json"))
        for artist, package in sources.artists.items()
    }
    left_out: Counter[str] = Counter()
    drawings = {}
    for artist, match in _matches(sets, emojis, shortcodes).items():
        every = {code: sets[artist].svg(icon) for code, icon in match.items()}
        drawings[artist] = _without_doubles(every, emojis)
        left_out["the artist's drawing of another emoji"] += len(every) - len(drawings[artist])

    seen = {
        emoji.code
        for emoji in emojis
        if not is_held_out(emoji.label)
        and any(emoji.code in svgs for artist, svgs in drawings.items() if artist != NEW_ARTIST)
    }
    pictures = []
    for artist, svgs in drawings.items():
        for emoji in emojis:
            if emoji.code not in svgs:
                continue
            split = split_of(artist, emoji.label, emoji.code in seen)
            if split is None:
                left_out[f"{artist}'s alone, and not held out"] += 1
                continue
            pictures.append(Picture(artist, emoji, svgs[emoji.code], split))
    return sorted(pictures, key=lambda picture: picture.key), emojis, left_out


def _matches(
    sets: dict[str, IconSet], emojis: list[Emoji], shortcodes: dict[str, str | list[str]]
) -> dict[str, dict[str, str]]:
    """Icon names by an emoji's code, by artist."""
    matches = {
        artist: match_by_code(icons, emojis)
        for artist, icons in sets.items()
        if artist not in MATCHED_BY_NAME
    }
    tiers = [
        {emoji.code: {emoji.label} for emoji in emojis},
        {emoji.code: {emoji.name} for emoji in emojis},
        names_in_sets([sets[artist] for artist in matches], emojis),
        {
            code_points(code): {names} if isinstance(names, str) else set(names)
            for code, names in shortcodes.items()
        },
    ]
    exceptions = {"fxemoji": FXEMOJI_LABELS}
    for artist in MATCHED_BY_NAME:
        found = match_by_name(sets[artist], emojis, tiers, exceptions.get(artist, {}))
        matches[artist] = found
    return {artist: matches[artist] for artist in sets}


def _without_doubles(svgs: dict[str, str], emojis: list[Emoji]) -> dict[str, str]:
    """Keeps one emoji of those for which an artist has one drawing: the one that says least.

    Twemoji draws 23 families alike, for one: no model could tell which of them is meant.
    """

    def says(emoji: Emoji) -> tuple[int, int]:
        words = emoji.label.replace(",", "").split()
        return sum(word in ("man", "woman", "men", "women", "boy", "girl") for word in words), len(
            words
        )

    kept: dict[str, str] = {}
    for emoji in sorted(emojis, key=says):
        if emoji.code in svgs:
            kept.setdefault(svgs[emoji.code], emoji.code)
    return {code: svg for svg, code in kept.items()}
