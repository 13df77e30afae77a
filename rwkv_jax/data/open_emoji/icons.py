"""An artist's drawings in Iconify's JSON format: names, other names, code points, SVG."""

from dataclasses import dataclass, field
from typing import Any


def code_points(hexcode: str) -> str:
    """The sequence without variation selectors, which some write: "2764-FE0F" -> "2764"."""
    return "-".join(part for part in hexcode.upper().split("-") if part not in ("FE0E", "FE0F"))


@dataclass(frozen=True)
class IconSet:
    """Attributes:
    icons: by name: `body` (SVG elements) and, if not the set's, left, top, width, height.
    aliases: by name: `parent` and, if the picture is mirrored or turned, hFlip, vFlip, rotate.
    names_by_code: an icon's or alias's name by code points; {} where the set has none.
    size: the set's width and height.
    """

    icons: dict[str, dict[str, Any]]
    aliases: dict[str, dict[str, Any]]
    names_by_code: dict[str, str] = field(default_factory=dict)
    size: tuple[float, float] = (16, 16)

    @classmethod
    def from_json(cls, icons: dict[str, Any], chars: dict[str, str]) -> "IconSet":
        """From a package's icons.json and chars.json."""
        return cls(
            icons=icons["icons"],
            aliases=icons.get("aliases", {}),
            names_by_code={code_points(code): name for code, name in chars.items()},
            size=(icons.get("width", 16), icons.get("height", 16)),
        )

    def other_names(self) -> dict[str, list[str]]:
        """Aliases that show the very picture of an icon, by that icon's name."""
        names: dict[str, list[str]] = {}
        for alias in self.aliases:
            name, same = alias, True
            while name in self.aliases:
                same = same and self.aliases[name].keys() <= {"parent", "hidden"}
                name = self.aliases[name]["parent"]
            if same:
                names.setdefault(name, []).append(alias)
        return names

    def svg(self, name: str) -> str:
        """The SVG of an icon or alias in a square view box, centred if it is not square itself.

        Raises:
          KeyError: there is no such icon.
        """
        flips: dict[str, int] = {"hFlip": 0, "vFlip": 0, "rotate": 0}
        entry: dict[str, Any] = {}
        while name in self.aliases:
            alias = self.aliases[name]
            for key in flips:
                flips[key] += int(alias.get(key, 0))
            entry = {**alias, **entry}
            name = alias["parent"]
        entry = {**self.icons[name], **entry}
        left, top = entry.get("left", 0), entry.get("top", 0)
        width, height = entry.get("width", self.size[0]), entry.get("height", self.size[1])
        middle = f"{left + width / 2:g} {top + height / 2:g}"
        scale = f"{-1 if flips['hFlip'] % 2 else 1} {-1 if flips['vFlip'] % 2 else 1}"
        # Iconify turns in quarters, after mirroring; the rightmost transformation comes first.
        transform = (
            f"translate({middle}) rotate({90 * (flips['rotate'] % 4)}) scale({scale}) "
            f"translate({-(left + width / 2):g} {-(top + height / 2):g})"
        )
        side = max(width, height)
        box = f"{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side:g} {side:g}"
        body = entry["body"]
        if any(flips.values()):
            body = f'<g transform="{transform}">{body}</g>'
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{box}" width="{side:g}" height="{side:g}">{body}</svg>'
        )
