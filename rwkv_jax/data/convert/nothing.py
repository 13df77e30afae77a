"""What is said where not one sample became a record: mostly an option names a field wrongly."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rwkv_jax.data.convert.options import Unit
from rwkv_jax.data.convert.readers import DAMAGED
from rwkv_jax.data.convert.unit import WRITTEN
from rwkv_jax.data.folder import TABLE_SUFFIXES


def why_nothing(units: Sequence[Unit], reports: Sequence[dict[str, Any]]) -> str:
    """One sentence on why there is no record; "" where there is one.

    Before duplicates are taken out, of which the first always stays.

    Args:
        reports: of the units.
    """
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for report in reports:
        counts.update(report["counts"])
        for outcome, shown in report["examples"].items():
            first.setdefault(outcome, shown[0])
        for note, count in report["notes"].items():
            archive = note.removeprefix(f"{DAMAGED}: ")
            if archive != note:
                counts[DAMAGED] += count
                first.setdefault(DAMAGED, archive)
    if counts[WRITTEN]:
        return ""
    samples = counts.total() - counts[DAMAGED]
    # An example says what was looked for, and which fields there are.
    reasons = [
        f"{count:,} {outcome} ({first[outcome]})"
        for outcome, count in counts.most_common()
        if count
    ]
    advice = "correct the command or the data and start again"
    tables = _folders_with_a_table(units)
    if tables:
        names = " ".join(f"folder:{folder}" for folder in tables)
        advice += f", with {names} as source if the table in the folder holds the texts"
    left_out = f" ({'; '.join(reasons)})" if reasons else ""
    return f"0 records of {samples:,} samples, so nothing is written{left_out}: {advice}"


def _folders_with_a_table(units: Sequence[Unit]) -> list[Path]:
    """Those that were read as folders of pictures, which passes over a table."""
    folders = [path for path in map(Path, dict.fromkeys(u.origin for u in units)) if path.is_dir()]
    return [
        folder
        for folder in folders
        if any(file.suffix.lower() in TABLE_SUFFIXES for file in folder.iterdir())
    ]
