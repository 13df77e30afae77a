"""The report is one file that stands alone, tells what was measured, and trusts no text."""

import json
import sys
from html.parser import HTMLParser

import pytest

from rwkv_jax.evaluation.report import write_report
from rwkv_jax.evaluation.report.__main__ import main
from rwkv_jax.evaluation.report.curves import Chart, ticks
from rwkv_jax.evaluation.results import write_results
from rwkv_jax.evaluation.run import evaluate

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Reads a page, and fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.seen if name == tag]


@pytest.fixture
def evaluated(run_folder, run_config, embedder, params):
    evaluation = evaluate(embedder, run_config.eval, "", say=lambda line: None)
    path = run_folder / "results.json"
    write_results(path, evaluation, checkpoint=run_folder, step=2, params=params)
    return run_folder, evaluation


def test_page(evaluated):
    folder, evaluation = evaluated
    path = write_report(folder)
    assert path == folder / "report.html"
    raw = path.read_text("utf-8")
    page = Page(raw)
    # nothing is fetched, nothing runs
    assert not page.all("script")
    assert not page.all("link")
    for attributes in [*page.all("img"), *page.all("image")]:
        assert attributes.get("src", attributes.get("href")).startswith("data:image/")
    assert all(attributes["alt"] for attributes in page.all("img"))
    assert "url(" not in raw
    assert "@import" not in raw
    # a caption of the data that would be a script is shown as what it is
    assert "<script>" not in raw
    assert "&lt;script&gt;" in raw
    # the figures, the curves, the pictures
    for name in ("retrieval/test/text_to_image/R@5", "zero_shot/test/shape/top_1"):
        assert f"{evaluation.metrics[name]:.1%}" in page.text
        assert f"{evaluation.chance[name]:.1%}" in page.text
    assert "Loss" in page.text
    assert len(page.all("polyline")) == 3
    assert len(page.all("img")) >= 12 * 5
    assert len(page.all("image")) == 44
    assert "cross" in page.text
    assert page.text.count("rank ") == 12
    assert len(raw) < 2_000_000
    # the same files give the same page
    assert write_report(folder).read_text("utf-8") == raw


def test_what_is_missing_or_broken(evaluated):
    folder, _ = evaluated
    results = folder / "results.json"
    text = results.read_text()

    changed = json.loads(text)
    for dataset in changed["datasets"].values():
        dataset["content_hash"] = "0" * 64
    results.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="has changed since the evaluation"):
        write_report(folder)

    results.write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"results\.json is damaged"):
        write_report(folder)

    results.write_text(text)
    features = folder / "results.npz"
    features.write_bytes(features.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"results\.npz is damaged"):
        write_report(folder)
    features.unlink()
    with pytest.raises(FileNotFoundError, match=r"results\.npz is missing"):
        write_report(folder)
    results.unlink()
    with pytest.raises(FileNotFoundError, match=r"eval\.py --checkpoint"):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_a_page_that_cannot_be_written_is_one_sentence(evaluated, monkeypatch, capsys):
    folder, _ = evaluated
    (folder / "report.html").mkdir()
    before = {path.name for path in folder.iterdir()}
    monkeypatch.setattr(sys, "argv", ["report", "--workdir", str(folder)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"report: {folder / 'report.html'} cannot be written")
    assert told.count("\n") == 1
    assert {path.name for path in folder.iterdir()} == before


def test_ticks():
    assert ticks(0, 1) == pytest.approx([0, 0.5, 1])
    assert ticks(0, 0.9) == pytest.approx([0, 0.5])
    assert ticks(13, 57) == pytest.approx([20, 40])
    assert ticks(2, 2) == [2]


@pytest.mark.parametrize(
    "points",
    [
        [(1, 5.0)],
        [(1, 0.0), (2, 0.0)],
        [(0, -1.0), (9, 1e-9)],
        [(1, float("nan")), (2, 3.0)],
        [(1, float("nan"))],
    ],
)
def test_charts_of_odd_data(points):
    svg = str(Chart("Odd <data>", (("a", points),), "").svg())
    assert "nan" not in svg
    assert "inf" not in svg
    assert "&lt;data&gt;" in svg
    Page(svg)
