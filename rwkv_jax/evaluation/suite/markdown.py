"""The tables as Markdown."""

from rwkv_jax.evaluation.suite.facts import Facts
from rwkv_jax.evaluation.suite.run import SuiteResults
from rwkv_jax.evaluation.suite.tables import Table


def to_markdown(results: SuiteResults, found: list[Table], facts: Facts) -> str:
    """A document with every table, what is missing, and where the figures come from."""
    lines = [f"# {facts['Model']} beside the published numbers", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    for table in found:
        lines += ["", f"## {table.title}", "", table.note, ""]
        lines.append("| " + " | ".join(["", *table.columns]) + " |")
        lines.append("|---" + "|---:" * len(table.columns) + "|")
        for line in table.lines:
            cells = [
                cell.shown + (f" ({cell.signed})" if cell.signed else "") for cell in line.cells
            ]
            if line.own:
                cells = [f"**{cell}**" for cell in cells]
            lines.append("| " + " | ".join([_escaped(line.name), *cells]) + " |")
    if any(cell.part for table in found for line in table.lines for cell in line.cells):
        lines += ["", "\\* measured on another number of pictures than in the paper:", ""]
        lines += [f"- {line}" for line in other_counts(results)]
    for title, problems in (("Not on disk", results.missing), ("Failed", results.failed)):
        if problems:
            lines += ["", f"## {title}", ""]
            lines += [f"- {name}: {_escaped(why)}" for name, why in problems.items()]
    return "\n".join(lines) + "\n"


def other_counts(results: SuiteResults) -> list[str]:
    """A line for every part whose pictures are not as many as the paper's."""
    found = {
        f"{name.partition('/')[2]} {part.part}: {part.count:,} of {part.expected:,} pictures"
        for name, each in results.measured.items()
        for part in each.parts
        if part.count != part.expected
    }
    return sorted(found)


def _escaped(text: str) -> str:
    for sign in "\\|*_<>[]`":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("\n", " ")
