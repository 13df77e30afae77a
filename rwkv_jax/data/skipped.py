"""Records that could not be used: counted by reason, logged once each, too many stop the run."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

_EXAMPLES = 5
# A share means little before this many records have been seen.
_MIN_SEEN = 200


class Skipped(NamedTuple):
    """One record that is left out, and why."""

    key: str
    reason: str  # one of few, e.g. "broken image": what is counted
    message: str  # what exactly, for the log


class TooManySkippedError(RuntimeError):
    """More records than the set share are broken: the data, not a record, is at fault."""


class SkippedRecords:
    """How many records were left out for which reason, with a few of their keys.

    `counts` and `examples` map a reason to a number and to the first few keys.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}
        self._logged: set[str] = set()

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def add(self, skipped: Skipped) -> None:
        """Counts it, and logs it unless this key was logged before (epochs come again)."""
        self.counts[skipped.reason] = self.counts.get(skipped.reason, 0) + 1
        examples = self.examples.setdefault(skipped.reason, [])
        if len(examples) < _EXAMPLES and skipped.key not in examples:
            examples.append(skipped.key)
        if skipped.key not in self._logged:
            self._logged.add(skipped.key)
            logger.warning("skipped %s: %s: %s", skipped.key, skipped.reason, skipped.message)

    def check(self, seen: int, max_share: float, name: str) -> None:
        """Raises TooManySkippedError if more than `max_share` of `seen` records were skipped."""
        early = seen < _MIN_SEEN and max_share > 0
        if early or (self.total <= max_share * seen and self.total < seen):
            return
        raise TooManySkippedError(
            f"{self.total} of the {seen} records read from {name} were skipped"
            f" ({self.total / seen:.1%}), more than max_skipped_share = {max_share}: {self};"
            " mend the data, or raise the share"
        )

    def __str__(self) -> str:
        """'3 broken image (a, b, c), 1 no text (d)'."""
        return ", ".join(
            f"{count} {reason} ({', '.join(self.examples[reason])}"
            + (", ...)" if count > len(self.examples[reason]) else ")")
            for reason, count in self.counts.items()
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            reason: {"count": count, "examples": list(self.examples[reason])}
            for reason, count in self.counts.items()
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "SkippedRecords":
        """The inverse of `to_dict`."""
        records = cls()
        records.counts = {reason: int(entry["count"]) for reason, entry in saved.items()}
        records.examples = {reason: list(entry["examples"]) for reason, entry in saved.items()}
        return records
