"""Gathers the sections and writes the page."""

import json
import statistics
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rwkv_jax.data.catalog import open_dataset
from rwkv_jax.data.open_emoji.dataset import read_manifest
from rwkv_jax.evaluation.features import EmbeddedSplit
from rwkv_jax.evaluation.report import curves, results_table
from rwkv_jax.evaluation.report.confusion import confusion
from rwkv_jax.evaluation.report.embedding_map import embedding_map
from rwkv_jax.evaluation.report.gallery import gallery
from rwkv_jax.evaluation.report.run_files import RunFiles, read_run
from rwkv_jax.evaluation.retrieval import with_prefix
from rwkv_jax.files import write_atomically
from rwkv_jax.models.config import ClipConfig
from rwkv_jax.models.params import abstract_params, flat_params

TEMPLATE = "report.html.jinja"
STYLE = "report.css"


def write_report(workdir: Path) -> Path:
    """Writes RUN/report.html from what train.py and eval.py left in RUN, and gives its path.

    The page holds everything it shows: it needs no network and no other file.

    Raises:
      FileNotFoundError: something is missing; says what writes it.
      ValueError: a file is damaged, or the dataset is gone or not the one that was evaluated.
    """
    run = read_run(workdir)
    splits: dict[tuple[str, str], EmbeddedSplit] = {}

    def features_of(dataset: str, split: str) -> EmbeddedSplit:
        if (dataset, split) not in splits:
            expected = run.results["datasets"][f"{dataset}/{split}"]["content_hash"]
            splits[dataset, split] = run.embeddings.pictures(
                dataset, split, run.data_dir, content_hash=expected
            )
        return splits[dataset, split]

    embed_texts = run.embeddings.texts
    galleries = [
        gallery(
            ask,
            features_of(ask.dataset, ask.split),
            open_dataset(ask.dataset, ask.split, run.data_dir),
            with_prefix(embed_texts, ask.caption_prefix),
        )
        for ask in run.asked.retrieval
    ]
    matrices = [
        confusion(task, features_of(task.dataset, task.split), embed_texts)
        for task in run.asked.zero_shot
    ]
    first = next(iter(run.asked.retrieval), None)
    the_map = first and embedding_map(
        first.split,
        features_of(first.dataset, first.split),
        open_dataset(first.dataset, first.split, run.data_dir),
        with_prefix(embed_texts, first.caption_prefix),
    )

    assets = resources.files("rwkv_jax.evaluation") / "assets"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string((assets / TEMPLATE).read_text("utf-8")).render(
        style=Markup((assets / STYLE).read_text("utf-8")),  # our own file
        run=run,
        facts=facts(run),
        attributions=attributions(run),
        groups=results_table.groups(run),
        training_charts=curves.training_charts(run),
        evaluation_charts=curves.evaluation_charts(run),
        galleries=galleries,
        matrices=[matrix for matrix in matrices if matrix],
        map=the_map,
        config_json=json.dumps(run.config, indent=1),
    )
    path = workdir / "report.html"
    write_atomically(path, page)
    return path


def facts(run: RunFiles) -> dict[str, str]:
    """What a reader wants to know of the run, in a few words each."""
    model, data = run.config["model"], run.config["data"]
    shapes = flat_params(abstract_params(ClipConfig.from_dict(model)))
    parameters = sum(leaf.size for leaf in shapes.values())
    rates = [rate for _, rate in run.series("train/images_per_second")]
    checkpoint, versions = run.results["checkpoint"], run.results["versions"]
    found = {
        "Parameters": f"{parameters:,}",
        "Trained on": "; ".join(
            f"{part['dataset']}, split {part['split']}" for part in data.get("mixture") or [data]
        ),
        "Picture size": f"{model['image']['image_size']} px",
        "Steps": f"{checkpoint['step']:,}" if checkpoint["step"] is not None else "not known",
        "Batch": f"{run.config['batch_size']} pairs",
    }
    if rates:
        seconds = sum(
            row["train/step_seconds"] * (row["step"] - before) for row, before in _logged_steps(run)
        )
        found["Training time"] = _duration(seconds)
        found["Speed"] = f"{statistics.median(rates):,.0f} images/s (median)"
    found |= {
        "Evaluation time": _duration(sum(run.results["seconds"].values())),
        "Device": versions["device"],
        "JAX": versions["jax"],
        "Parameter hash": checkpoint["parameter_hash"][:12],
        "Data hash": ", ".join(
            sorted({each["content_hash"][:12] for each in run.results["datasets"].values()})
        ),
    }
    return found


def _logged_steps(run: RunFiles) -> list[tuple[dict[str, float], float]]:
    """Each line with a step time, and the step of the one before it."""
    rows = [row for row in run.history if "train/step_seconds" in row]
    return list(zip(rows, [0.0, *(row["step"] for row in rows)], strict=False))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def attributions(run: RunFiles) -> list[dict[str, Any]]:
    """Who made the data, and under which licence they give it, where the dataset says so."""
    data = run.config["data"]
    if data["dataset"] != "open_emoji":
        return []
    manifest = read_manifest(data["data_dir"])
    return manifest["sources"] if manifest else []
