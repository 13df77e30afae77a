"""Prompt sets for zero-shot classification: a class name goes where `{}` stands. The wording is
ours.

An ensemble averages a class's features over all templates of the set. Add a set by adding an entry.
"""

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType

PROMPTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        # The class name alone: right where names are already phrases, as the texts of open_emoji
        # are.
        "plain": ("{}",),
        "emoji": (
            "{}",
            "{} emoji",
            "a picture of {}",
            "a small drawing of {}",
            "an icon that shows {}",
        ),
        "photo": (
            "a photo of a {}.",
            "a close view of a {}.",
            "a {} seen from afar.",
            "a blurred photo of a {}.",
            "a dark photo of a {}.",
            "a bright photo of one {}.",
            "several of the {}.",
            "a painting of a {}.",
        ),
    }
)


def prompt_hash(templates: tuple[str, ...]) -> str:
    """A SHA-256 of the templates in their order, so that a figure can be traced to its prompts."""
    return hashlib.sha256(json.dumps(templates).encode()).hexdigest()
