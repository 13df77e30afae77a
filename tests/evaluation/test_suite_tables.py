"""The papers' numbers, and a row of ours beside them."""

import statistics

import pytest

from rwkv_jax.evaluation.suite.facts import facts_of
from rwkv_jax.evaluation.suite.markdown import to_markdown
from rwkv_jax.evaluation.suite.measured import Measured, PartFacts
from rwkv_jax.evaluation.suite.page import to_html
from rwkv_jax.evaluation.suite.protocol import Protocol
from rwkv_jax.evaluation.suite.run import SuiteResults
from rwkv_jax.evaluation.suite.tables import Cell, published, tables
from rwkv_jax.evaluation.suite.tasks import TABLES

NASTY = "<b>|pipes|</b>"


def result(task, metric, value, count=100, **more):
    part = PartFacts("test", "source", "test", "0" * 64, "1" * 64, count, 100, 0)
    figures = {metric: value, **more}
    chances = dict.fromkeys(figures, 0.1)
    return Measured(task, metric, value, 0.1, figures, chances, (part,), None, {}, 0.5)


def test_published_numbers_are_whole():
    """A slip of the hand in a column shows in its average."""
    for kind in ("zero_shot", "linear_probe"):
        numbers = published()[kind]
        assert set(numbers["sets"]) <= set(TABLES[kind])
        for model, average in numbers["averages"].items():
            assert len(numbers[model]) == len(numbers["sets"])
            assert statistics.mean(numbers[model]) == pytest.approx(average, abs=0.06), model
    assert tuple(published()["zero_shot"]["sets"]) == TABLES["zero_shot"]
    for model in published()["models"]:
        for values in published()["retrieval"][model]:
            assert values is None or (values[:3] == sorted(values[:3]) and len(values) == 6)


def test_cells():
    assert (Cell(51.25, 1.26).shown, Cell(51.25, 1.26).signed) == ("51.2", "+1.3")
    assert Cell(50.0, -0.04).direction == "same"
    assert (Cell(50.0, -3.0).signed, Cell(50.0, -3.0).direction) == ("\N{MINUS SIGN}3.0", "worse")
    assert Cell().shown == "\N{EN DASH}"


def test_rows_and_averages():
    shares = dict.fromkeys(TABLES["zero_shot"], 0.5)
    measured = {
        f"zero_shot/{n}": result(f"zero_shot/{n}", "accuracy", v) for n, v in shares.items()
    }
    measured["linear_probe/cifar10"] = result("linear_probe/cifar10", "accuracy", 0.9, count=7)
    recalls = dict.fromkeys(published()["retrieval"]["columns"], 0.5)
    measured["retrieval/coco"] = result("retrieval/coco", "image_to_text/R@1", 0.5, **recalls)
    results = SuiteResults(
        Protocol(), measured, {"mnist": f"get {NASTY}"}, {"zero_shot/x": "it broke"}, ()
    )
    zero, probe, coco, rest = tables(results, NASTY)
    assert zero.lines[-1].cells[0].difference == pytest.approx(50 - 79.8)
    assert zero.lines[-1].cells[-1].value == pytest.approx(50)
    assert zero.lines[-1].cells[-1].difference == pytest.approx(50 - 44.4)
    # nine sets are not measured, so there is no average; ALIP is the reference
    assert probe.lines[-1].cells[0].difference == pytest.approx(90 - 94.3)
    assert probe.lines[-1].cells[0].part
    assert probe.lines[-1].cells[-1].value is None
    assert coco.lines[-1].cells[5].difference == pytest.approx(50 - 71.7)
    assert len(rest.lines) == 11

    facts = facts_of(
        results,
        name=NASTY,
        parameters=10,
        step=None,
        parameter_hash="ab" * 32,
        precision="float32",
        versions={"device": "cpu", "jax": "1", "code": "commit"},
    )
    text = to_markdown(results, tables(results, NASTY), facts)
    assert "cifar10 test: 7 of 100 pictures" in text
    widths = {line.count("|") - line.count("\\|") for line in text.splitlines() if "ALIP |" in line}
    assert widths == {14, 13, 8}  # the sets of each table, the average, the name
    page = to_html(results, tables(results, NASTY), facts)
    assert NASTY not in page
    assert "&lt;b&gt;|pipes|&lt;/b&gt;" in page
    assert "it broke" in page
    assert page.count('class="own"') == 3


def test_nothing_measured():
    results = SuiteResults(Protocol(), {}, {"mnist": "get it"}, {}, ())
    assert tables(results, "run") == []
    assert "None of the sets" in to_html(results, [], {"Model": "run"})
