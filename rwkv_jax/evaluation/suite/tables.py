"""The papers' tables with a row of ours: what is shown, before it is Markdown or HTML."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from importlib import resources
from statistics import mean
from typing import Any

from rwkv_jax.evaluation.catalog.classification import CLASSIFICATION, LINEAR_PROBE
from rwkv_jax.evaluation.catalog.entry import METRIC_TITLES
from rwkv_jax.evaluation.catalog.retrieval_sets import RETRIEVAL
from rwkv_jax.evaluation.suite.run import SuiteResults
from rwkv_jax.evaluation.suite.tasks import Kind

ASSET = "published.json"
DASH = "\N{EN DASH}"
DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A number of a table.

    Attributes:
      value: in percent; None where there is none.
      difference: from the reference model, in points; None where there is nothing to compare.
      part: whether it was measured on other pictures than the paper counts.
    """

    value: float | None = None
    difference: float | None = None
    part: bool = False

    @property
    def shown(self) -> str:
        """One digit after the point, as the papers have it."""
        mark = "*" if self.part else ""
        return DASH if self.value is None else f"{self.value:.1f}{mark}"

    @property
    def signed(self) -> str:
        """The difference with its sign; "" where there is none."""
        if self.difference is None:
            return ""
        rounded = round(self.difference, 1)
        return (
            "\N{PLUS-MINUS SIGN}0.0"
            if rounded == 0
            else f"{rounded:+.1f}".replace("-", "\N{MINUS SIGN}")
        )

    @property
    def direction(self) -> str:
        """ "better", "worse" or "same" than the reference; "" where there is none."""
        if self.difference is None:
            return ""
        rounded = round(self.difference, 1)
        return "better" if rounded > 0 else "worse" if rounded < 0 else "same"


@dataclasses.dataclass(frozen=True)
class Line:
    """A row of a table; `own` is this checkpoint's."""

    name: str
    cells: tuple[Cell, ...]
    own: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      title: its heading.
      note: a sentence below the heading.
      columns: the headings.
      lines: the rows, ours last.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]


@functools.cache
def published() -> dict[str, Any]:
    """The published numbers, as assets/published.json has them."""
    text = (resources.files("rwkv_jax.evaluation") / "assets" / ASSET).read_text("utf-8")
    return json.loads(text)


def tables(results: SuiteResults, own_name: str) -> list[Table]:
    """The tables that at least one measured task belongs to, in the papers' order."""
    found = [
        _classification("zero_shot", "Zero-shot classification", results, own_name),
        _classification("linear_probe", "Linear probe", results, own_name),
        *(_retrieval(name, results, own_name) for name in published()["retrieval"]["sets"]),
        _rest(results, own_name),
    ]
    return [table for table in found if table is not None]


def _classification(kind: Kind, title: str, results: SuiteResults, own_name: str) -> Table | None:
    numbers = published()[kind]
    sets: Sequence[str] = numbers["sets"]
    own = [_value(results, f"{kind}/{name}", None) for name in sets]
    if all(cell.value is None for cell in own):
        return None
    known = {model: numbers[model] for model in published()["models"]}
    reference = published()["reference"][kind]
    averages = numbers["averages"]
    lines = [
        Line(model, _published_cells(values, averages.get(model), len(sets)))
        for model, values in known.items()
    ]
    cells = _compared(own, [*known[reference], averages[reference]])
    note = (
        f"In percent; Pets, Flowers, Caltech101 and Aircraft are means per class. Differences are"
        f" from {reference} ({published()['backbone']})."
    )
    columns = (*(CLASSIFICATION[name].title for name in sets), "Average")
    return Table(title, note, columns, (*lines, Line(own_name, cells, own=True)))


def _published_cells(
    values: Sequence[float | None] | None, average: float | None, count: int
) -> tuple[Cell, ...]:
    return (*(Cell(value) for value in values or (None,) * count), Cell(average))


def _compared(own: list[Cell], reference: list[float]) -> tuple[Cell, ...]:
    """Our cells and their average, which stands only where no set is missing."""
    cells = list(own)
    if all(cell.value is not None for cell in own):
        average = mean(cell.value for cell in own if cell.value is not None)
        cells.append(Cell(average, part=any(cell.part for cell in own)))
    else:
        cells.append(Cell())
    return tuple(
        dataclasses.replace(cell, difference=cell.value - beside)
        if cell.value is not None
        else cell
        for cell, beside in zip(cells, reference, strict=True)
    )


def _retrieval(name: str, results: SuiteResults, own_name: str) -> Table | None:
    numbers = published()["retrieval"]
    columns: Sequence[str] = numbers["columns"]
    own = [_value(results, f"retrieval/{name}", column) for column in columns]
    if all(cell.value is None for cell in own):
        return None
    place = numbers["sets"].index(name)
    known = {model: numbers[model][place] for model in published()["models"]}
    reference = published()["reference"]["retrieval"]
    lines = [
        Line(model, tuple(map(Cell, values)) if values else (Cell(),) * len(columns))
        for model, values in known.items()
    ]
    cells = tuple(
        dataclasses.replace(cell, difference=None if cell.value is None else cell.value - beside)
        for cell, beside in zip(own, known[reference], strict=True)
    )
    titles = tuple(_in_words(column) for column in columns)
    note = (
        "Recall in percent, ties counted against the model. Differences are from"
        f" {reference} ({published()['backbone']})."
    )
    title = f"Retrieval on {RETRIEVAL[name].title}"
    return Table(title, note, titles, (*lines, Line(own_name, cells, own=True)))


def _in_words(column: str) -> str:
    direction, _, metric = column.partition("/")
    return f"{DIRECTIONS[direction]} {metric}"


def _rest(results: SuiteResults, own_name: str) -> Table | None:
    """Every classification set that was measured, both ways, with metric and chance."""
    both = [
        name
        for name in LINEAR_PROBE
        if f"linear_probe/{name}" in results.measured or f"zero_shot/{name}" in results.measured
    ]
    if not both:
        return None
    lines = []
    for name in both:
        zero = results.measured.get(f"zero_shot/{name}")
        probe = results.measured.get(f"linear_probe/{name}")
        title = f"{CLASSIFICATION[name].title} ({METRIC_TITLES[CLASSIFICATION[name].metric]})"
        cells = (
            _value(results, f"zero_shot/{name}", None),
            Cell(100 * zero.chance if zero else None),
            _value(results, f"linear_probe/{name}", None),
            Cell(100 * probe.chance if probe else None),
        )
        lines.append(Line(title, cells))
    columns = ("Zero-shot", "chance", "Linear probe", "chance")
    note = (
        f"All sets of the CLIP list on which {own_name} was measured. Chance: one class of all; the"
        " commonest class of the training pictures."
    )
    return Table("Every set by itself", note, columns, tuple(lines))


def _value(results: SuiteResults, task: str, figure: str | None) -> Cell:
    found = results.measured.get(task)
    if found is None:
        return Cell()
    value = found.value if figure is None else found.figures.get(figure)
    other = any(part.count != part.expected for part in found.parts)
    return Cell(None if value is None else 100 * value, part=other)
