"""The tables as one HTML page, which holds everything it shows."""

import json
from importlib import resources

import jinja2
from markupsafe import Markup

from rwkv_jax.evaluation.suite.facts import Facts
from rwkv_jax.evaluation.suite.markdown import other_counts
from rwkv_jax.evaluation.suite.run import SuiteResults
from rwkv_jax.evaluation.suite.tables import Table, published

TEMPLATE = "suite.html.jinja"
STYLES = ("report.css", "suite.css")


def to_html(results: SuiteResults, found: list[Table], facts: Facts) -> str:
    """The page."""
    assets = resources.files("rwkv_jax.evaluation") / "assets"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = "".join((assets / name).read_text("utf-8") for name in STYLES)  # our own files
    return environment.from_string((assets / TEMPLATE).read_text("utf-8")).render(
        style=Markup(style),
        facts=facts,
        tables=found,
        other_counts=other_counts(results),
        missing=results.missing,
        failed=results.failed,
        sources=published()["sources"],
        details=json.dumps(
            {name: each.to_dict() for name, each in results.measured.items()},
            indent=1,
            ensure_ascii=False,
        ),
    )
