"""The concepts: emojis with their texts and classes, from emojibase-data and emojilib.

A concept is one emoji without skin tone: tones change a colour, not what is shown, and not every
artist draws them. Flags are left out (their pictures are known by heart or not at all), and so are
components (tone and hair swatches) and regional indicators, which show parts of other emojis.
"""

from dataclasses import dataclass
from typing import Any

from rwkv_jax.data.open_emoji.icons import code_points

LEFT_OUT_GROUPS = ("component", "flags")


@dataclass(frozen=True)
class Emoji:
    """Attributes:
    code: code points without variation selectors, e.g. "1F468-200D-1F692".
    label: the CLDR short name, e.g. "man firefighter"; no other emoji has it.
    name: the names of its characters, e.g. "man, fire engine".
    tags: keyword lists, each one text, e.g. ("fire, firefighter, firetruck, man",).
    group, subgroup: class names, e.g. "people & body", "roles & careers".
    """

    code: str
    label: str
    name: str
    tags: tuple[str, ...]
    group: str
    subgroup: str

    @property
    def texts(self) -> dict[str, tuple[str, ...]]:
        """By kind, as a record has them."""
        return {"name": (self.name,), "label": (self.label,), "tags": self.tags}


def read_emojis(
    data: list[dict[str, Any]],
    messages: dict[str, Any],
    groups: dict[str, Any],
    unicode_names: dict[str, str],
    keywords: dict[str, list[str]],
) -> list[Emoji]:
    """The emojis in Unicode's order.

    Unicode names come from emojibase's table and not from `unicodedata`, whose version is the
    interpreter's: Python 3.11 lacks 34 of them, and the data would depend on who prepared it.

    Args:
      data, messages: emojibase-data's en/data.json and en/messages.json.
      groups, unicode_names: its meta/groups.json and meta/unicode-names.json.
      keywords: emojilib's dist/emoji-en-US.json, by emoji.
    """
    # Keys join the tables: two subgroups of messages.json have the same `order` at 17.0.0.
    group_titles = {entry["key"]: entry["message"] for entry in messages["groups"]}
    subgroup_titles = {entry["key"]: entry["message"] for entry in messages["subgroups"]}
    more_tags = {code_points(_hexcode(emoji)): words for emoji, words in keywords.items()}
    emojis = []
    for entry in sorted(data, key=lambda entry: entry.get("order", 0)):
        group = groups["groups"].get(str(entry.get("group")))
        if group is None or group in LEFT_OUT_GROUPS:
            continue
        code = code_points(entry["hexcode"])
        # emojilib's first keyword is the name again.
        others = [word.replace("_", " ") for word in more_tags.get(code, [])[1:]]
        tags = (", ".join(entry.get("tags", [])), ", ".join(others))
        emojis.append(
            Emoji(
                code=code,
                label=entry["label"],
                name=unicode_names[entry["hexcode"]].lower(),
                tags=tuple(text for text in tags if text),
                group=group_titles[group],
                subgroup=subgroup_titles[groups["subgroups"][str(entry["subgroup"])]],
            )
        )
    return emojis


def _hexcode(emoji: str) -> str:
    return "-".join(f"{ord(character):04X}" for character in emoji)
