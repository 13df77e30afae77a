"""Class names and templates of the catalog's sets: assets/clip_prompts.json, read."""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from rwkv_jax.data.records import DatasetError
from rwkv_jax.evaluation.catalog.entry import ClassificationSet

ASSET = "clip_prompts.json"


@dataclasses.dataclass(frozen=True)
class Prompts:
    """What is asked of a text encoder about one set.

    Attributes:
      classes: [classes] the names of each class, most have one.
      templates: texts with `{}` where a name goes.
      dataset_names: [classes] what the dataset itself calls each class.
    """

    classes: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...]
    dataset_names: tuple[str, ...]

    @property
    def titles(self) -> tuple[str, ...]:
        """[classes] the first name of each class."""
        return tuple(names[0] for names in self.classes)

    @property
    def sha256(self) -> str:
        """Of the names and templates in their order."""
        return hashlib.sha256(json.dumps([self.classes, self.templates]).encode()).hexdigest()

    def without(self, titles: Sequence[str]) -> "Prompts":
        """The same less some classes."""
        kept = [i for i, title in enumerate(self.titles) if title not in titles]
        return Prompts(
            tuple(self.classes[i] for i in kept),
            self.templates,
            tuple(self.dataset_names[i] for i in kept),
        )


def prompts_of(name: str, without: Sequence[str] = ()) -> Prompts:
    """The classes and templates of a set of the catalog, less the classes `without`."""
    entry = _asset()["sets"][name]
    classes = tuple((each,) if isinstance(each, str) else tuple(each) for each in entry["classes"])
    other = entry.get("dataset_names", {})
    own = tuple(other.get(names[0], names[0]) for names in classes)
    return Prompts(classes, tuple(entry["templates"]), own).without(without)


@functools.cache
def _asset() -> dict[str, Any]:
    text = (resources.files("rwkv_jax.evaluation") / "assets" / ASSET).read_text("utf-8")
    return json.loads(text)


def plain(name: str) -> str:
    """The small letters and the digits of a name: "/a/apple_pie" (SUN397's way) and "Apple pie"
    are one.
    """
    return re.sub(r"[^a-z0-9]", "", re.sub(r"^/./", "", name).lower())


def match_classes(
    entry: ClassificationSet, found: Sequence[str], prompts: Prompts
) -> tuple[int | None, ...]:
    """[found] the place in `prompts.classes` of each class of a dataset on disk; None for one that
    `prompts` leaves out.

    Raises:
      DatasetError: a class is not known, or the numbers of classes differ where only the order
        tells which is which.
    """
    if entry.match == "order":
        if len(found) != len(prompts.classes):
            raise DatasetError(
                f"{entry.title} has {len(prompts.classes)} classes, which are told apart by their"
                f" order, but {len(found)} were found: {', '.join(found[:5])}, ..."
            )
        return tuple(range(len(found)))
    whole = prompts_of(entry.name)
    if tuple(found) == tuple(map(str, range(len(whole.classes)))):  # nameless; in CLIP's order
        found = whole.titles
    known = {
        plain(own): title for own, title in zip(whole.dataset_names, whole.titles, strict=True)
    }
    known |= {plain(title): title for title in whole.titles}
    strangers = [name for name in found if plain(name) not in known]
    if strangers:
        raise DatasetError(
            f"{entry.title} has no class {strangers[0]!r}"
            + (f" (nor {len(strangers) - 1} more that were found)" if strangers[1:] else "")
            + f"; its classes are {', '.join(whole.dataset_names[:3])}, ..."
        )
    place = {title: i for i, title in enumerate(prompts.titles)}
    return tuple(place.get(known[plain(name)]) for name in found)
