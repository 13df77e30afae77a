"""Tarballs in, pictures out: every drawing with its emoji and its split, not yet rendered."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rwkv_jax.data.open_emoji.download import read_json
from rwkv_jax.data.open_emoji.emoji import Emoji, read_emojis
from rwkv_jax.data.open_emoji.icons import IconSet, code_points
from rwkv_jax.data.open_emoji.matching import match_by_code, match_by_name, names_in_sets
from rwkv_jax.data.open_emoji.sources import (
    ARTISTS,
    EMOJIBASE,
    EMOJILIB,
    MATCHED_BY_NAME,
    NEW_ARTIST,
)
from rwkv_jax.data.open_emoji.splits import SPLITS, is_held_out, split_of


@dataclass(frozen=True)
class Picture:
    """Attributes:
    artist: a key of `sources.ARTISTS`.
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


def read_pictures(tarballs: dict[str, Path]) -> tuple[list[Picture], list[Emoji], Counter[str]]:
    """Reads all pictures, sorted by key; all emojis; and how many pictures each artist left out.

    Left out are the new artist's pictures of concepts that no training artist drew.

    Args:
      tarballs: paths by `Package.spec`.

    Raises:
      DatasetError: a tarball is broken or lacks a file.
    """
    data, messages, groups, unicode_names, shortcodes = read_json(
        tarballs[EMOJIBASE.spec],
        "en/data.json",
        "en/messages.json",
        "meta/groups.json",
        "meta/unicode-names.json",
        # JoyPixels is what Emoji One became.
        "en/shortcodes/joypixels.json",
    )
    (keywords,) = read_json(tarballs[EMOJILIB.spec], "dist/emoji-en-US.json")
    emojis = read_emojis(data, messages, groups, unicode_names, keywords)
    sets = {
        artist: IconSet.from_json(*read_json(tarballs[package.spec], "icons.json", "chars.json"))
        for artist, package in ARTISTS.items()
    }
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
    for artist in MATCHED_BY_NAME:
        matches[artist] = match_by_name(sets[artist], emojis, tiers)

    seen = {
        emoji.code
        for emoji in emojis
        if not is_held_out(emoji.label)
        and any(emoji.code in match for artist, match in matches.items() if artist != NEW_ARTIST)
    }
    pictures = []
    left_out: Counter[str] = Counter()
    for artist, match in matches.items():
        for emoji in emojis:
            if emoji.code not in match:
                continue
            split = split_of(artist, emoji.label, emoji.code in seen)
            if split is None:
                left_out[artist] += 1
                continue
            assert split in SPLITS
            pictures.append(Picture(artist, emoji, sets[artist].svg(match[emoji.code]), split))
    return sorted(pictures, key=lambda picture: picture.key), emojis, left_out
