"""What a run of the suite leaves: FOLDER/results.json, tables.md and tables.html."""

import json
from pathlib import Path
from typing import Any

from rwkv_jax.evaluation.suite.facts import facts_of
from rwkv_jax.evaluation.suite.markdown import to_markdown
from rwkv_jax.evaluation.suite.page import to_html
from rwkv_jax.evaluation.suite.run import SuiteResults
from rwkv_jax.evaluation.suite.tables import tables
from rwkv_jax.files import write_atomically


def write_suite(
    folder: Path,
    results: SuiteResults,
    *,
    name: str,
    checkpoint: dict[str, Any],
    parameters: int,
    precision: str,
    versions: dict[str, str],
) -> None:
    """Writes the three files, each atomically.

    Args:
      folder: where to.
      results: what was found.
      name: what the tables call this checkpoint.
      checkpoint: its path, step and parameter_hash.
      parameters: how many it has.
      precision: what it was computed in.
      versions: of the code and of what it runs on.

    Raises:
      OSError: a file cannot be written; it is named.
    """
    everything = {
        "checkpoint": checkpoint,
        "mode": results.protocol.mode,
        "switches": list(results.protocol.switches),
        "measured": {task: each.to_dict() for task, each in results.measured.items()},
        "missing": results.missing,
        "failed": results.failed,
        "precision": precision,
        "versions": versions,
    }
    facts = facts_of(
        results,
        name=name,
        parameters=parameters,
        step=checkpoint["step"],
        parameter_hash=checkpoint["parameter_hash"],
        precision=precision,
        versions=versions,
    )
    found = tables(results, name)
    text = json.dumps(everything, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / "results.json", text)
    write_atomically(folder / "tables.md", to_markdown(results, found, facts))
    write_atomically(folder / "tables.html", to_html(results, found, facts))
