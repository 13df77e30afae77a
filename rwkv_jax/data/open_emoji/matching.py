"""Which drawing shows which emoji: by code points where a set has them, else by name.

A name is compared as a slug (letters and digits only) with every name that an emoji goes by, the
most trusted first. A name that two emojis go by says nothing and is passed over.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence

from rwkv_jax.data.open_emoji.emoji import Emoji
from rwkv_jax.data.open_emoji.icons import IconSet


def slug(name: str) -> str:
    """Letters and digits only, for comparison: "pinataandco" for "Piñata & co."."""
    plain = unicodedata.normalize("NFKD", name.replace("&", "and"))
    return re.sub(r"[^a-z0-9]", "", plain.encode("ascii", "ignore").decode().lower())


def match_by_code(icons: IconSet, emojis: Sequence[Emoji]) -> dict[str, str]:
    """Icon names by the code of the emoji that they show."""
    return {
        emoji.code: icons.names_by_code[emoji.code]
        for emoji in emojis
        if emoji.code in icons.names_by_code
    }


def names_in_sets(sets: Sequence[IconSet], emojis: Sequence[Emoji]) -> dict[str, set[str]]:
    """What sets that know code points call each emoji, older names included; by code."""
    names: dict[str, set[str]] = defaultdict(set)
    for icons in sets:
        others = icons.other_names()
        for code, name in match_by_code(icons, emojis).items():
            names[code].update([name, *others.get(name, [])])
    return names


def match_by_name(
    icons: IconSet,
    emojis: Sequence[Emoji],
    tiers: Sequence[Mapping[str, set[str]]],
    exceptions: Mapping[str, str | None],
) -> dict[str, str]:
    """Icon names by the code of the emoji that they show.

    Args:
      icons: a set without code points.
      emojis: what may be shown.
      tiers: names by an emoji's code, the most trusted tier first.
      exceptions: labels by icon name, which come before all; None if the icon shows no emoji.
    """
    known = {emoji.code for emoji in emojis}
    by_label = {emoji.label: emoji.code for emoji in emojis}
    others = icons.other_names()
    matched = {
        by_label[label]: icon
        for icon, label in exceptions.items()
        if icon in icons.icons and label in by_label
    }
    taken = set(exceptions)
    for tier in tiers:
        claims: dict[str, set[str]] = defaultdict(set)
        for code, names in tier.items():
            if code in known:
                for name in names:
                    claims[slug(name)].add(code)
        for icon in icons.icons:
            if icon in taken:
                continue
            codes = [
                claims[slug(name)] for name in (icon, *others.get(icon, [])) if slug(name) in claims
            ]
            # The icon's own name comes first, then what it was called before.
            for claim in codes:
                if len(claim) == 1 and (code := next(iter(claim))) not in matched:
                    matched[code] = icon
                    taken.add(icon)
                    break
    return matched
