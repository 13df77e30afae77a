"""`eval.py --suite paper` over three small sets on disk: one of TFDS, a folder, and captions."""

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_sets import CIFAR, write_sets

from rwkv_jax.data.catalog import open_dataset
from rwkv_jax.evaluation.catalog.classes import prompts_of
from rwkv_jax.evaluation.catalog.classification import CLASSIFICATION
from rwkv_jax.evaluation.catalog.find import open_part
from rwkv_jax.evaluation.config import EvalConfig
from rwkv_jax.evaluation.embed import embedder_from
from rwkv_jax.evaluation.run import check_datasets, evaluate
from rwkv_jax.evaluation.suite.ledger import Ledger
from rwkv_jax.evaluation.suite.measured import Measured
from rwkv_jax.evaluation.suite.protocol import Protocol
from rwkv_jax.evaluation.suite.tasks import tasks_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    write_sets(folder)
    return folder


def run_eval(monkeypatch, *arguments):
    spec = importlib.util.spec_from_file_location("eval_command", ROOT / "eval.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["eval.py", *map(str, arguments)])
    module.main()


def test_the_whole_suite(run_folder, run_config, params, data_dir, monkeypatch, capsys):
    data = run_folder / "data"
    shutil.copytree(data_dir, data)
    asked = ("--checkpoint", run_folder, "--suite", "paper", "--data-dir", data)
    run_eval(monkeypatch, *asked)
    shown = capsys.readouterr()
    folder = run_folder / "suite"
    results = json.loads((folder / "results.json").read_text())
    names = {
        "zero_shot/cifar10",
        "zero_shot/pets",
        "linear_probe/cifar10",
        "linear_probe/pets",
        "retrieval/flickr30k",
    }
    measured = results["measured"]
    assert measured.keys() == names
    assert results["failed"] == {}
    assert len(results["missing"]) == 27 + 2 - 3
    assert "tfds.builder('food101'" in results["missing"]["food101"]
    assert len(results["checkpoint"]["parameter_hash"]) == 64
    assert results["versions"]["code"]
    # two parts of two sets, and one of the captions: each was encoded once
    assert shown.err.count("encoded ") == 5
    assert "missing: MSCOCO" in shown.err
    (part,) = measured["zero_shot/cifar10"]["parts"]
    assert (part["count"], part["expected"]) == (20, 10_000)
    assert measured["zero_shot/cifar10"]["prompts"]["templates"][0] == "a photo of a {}."
    assert measured["linear_probe/pets"]["metric"] == "mean_per_class"
    assert measured["linear_probe/cifar10"]["switches"]["train_split"] == "train"

    # ------------------------------- the figures are those of features that were computed apart
    embedder = embedder_from(run_config.model, params, dtype=jnp.float32, batch_size=7)
    pictures = embedder.pictures(open_dataset("tfds:cifar10", "test", str(data)))
    classes = []
    for name in CIFAR:
        templates = prompts_of("cifar10").templates
        texts = embedder.texts([template.replace("{}", name) for template in templates])
        classes.append(texts.mean(axis=0) / np.linalg.norm(texts.mean(axis=0)))
    answers = (pictures.features @ np.array(classes).T).argmax(axis=1)
    truth = [CIFAR.index(pictures.class_names["label"][i["label"]]) for i in pictures.labels]
    assert measured["zero_shot/cifar10"]["value"] == pytest.approx(np.mean(answers == truth))
    flickr = measured["retrieval/flickr30k"]
    assert flickr["chances"]["text_to_image/R@5"] == pytest.approx(5 / 6)
    assert flickr["chances"]["image_to_text/R@1"] == pytest.approx(5 / 30)  # five captions of six

    # -------------------------------------------------------------- the tables beside the papers'
    table = (folder / "tables.md").read_text()
    assert "| RWKV-CLIP | 79.8 | 55.1 |" in table
    assert "| ALIP | 94.3 | 77.8 |" in table
    value = 100 * measured["zero_shot/cifar10"]["value"]
    sign = "+" if value > 79.8 else "\N{MINUS SIGN}"
    assert f"**{value:.1f}* ({sign}{abs(value - 79.8):.1f})**" in table
    assert "cifar10 test: 20 of 10,000 pictures" in table
    page = (folder / "tables.html").read_text()
    assert '<span class="difference worse">' in page or '<span class="difference better">' in page
    assert "tfds.builder(&#39;food101&#39;" in page

    # ----------------------------------------------------- a restart measures only what has changed
    before = (folder / "results.json").read_bytes()
    run_eval(monkeypatch, *asked)
    again = capsys.readouterr()
    assert "encoded " not in again.err
    assert again.err.count("finished before") == 5
    assert (folder / "results.json").read_bytes() == before
    (data / "pets" / "test" / "Pug" / "0.png").unlink()
    run_eval(monkeypatch, *asked)
    third = capsys.readouterr()
    assert third.err.count("finished before") == 3
    assert third.err.count("encoded ") == 2
    # the old results are still there
    assert len(list((folder / "sets").glob("zero_shot.pets.*.json"))) == 2

    # ------------------- one set asked for: the tables keep the others, and lose nothing to a typo
    run_eval(monkeypatch, *asked[:2], "--suite", "zero_shot/cifar10", *asked[4:])
    assert capsys.readouterr().out.count("(finished before)") == 5
    results = json.loads((folder / "results.json").read_text())
    assert results["measured"].keys() == names
    assert next(iter(results["measured"])) == "zero_shot/cifar10"
    (part,) = results["measured"]["zero_shot/pets"]["parts"]
    assert part["count"] == 11  # the newest of two
    files = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(SystemExit) as stopped:
        run_eval(monkeypatch, *asked[:4], "--data-dir", run_folder / "dtaa")
    assert stopped.value.code == 2
    assert f"nothing was measured: {folder} is left as it is" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == files

    # ------------------------------------------- a damaged set is reported and stops no other one
    shutil.rmtree(data / "flickr30k" / "flickr30k-images")
    with pytest.raises(SystemExit) as stopped:
        run_eval(monkeypatch, *asked)
    assert stopped.value.code == 1
    results = json.loads((folder / "results.json").read_text())
    assert "unpack the pictures" in results["failed"]["retrieval/flickr30k"]
    assert results["measured"].keys() == names - {"retrieval/flickr30k"}


def test_refusals(run_folder, monkeypatch, capsys, tmp_path):
    def refused(*arguments):
        with pytest.raises(SystemExit) as stopped:
            run_eval(monkeypatch, "--checkpoint", run_folder, *arguments)
        assert stopped.value.code == 2
        return capsys.readouterr()

    assert "no set 'mnist2' of zero_shot" in refused("--suite", "zero_shot/mnist2").err
    nothing = refused("--suite", "retrieval", "--data-dir", tmp_path)
    assert "missing: coco" in nothing.out
    assert not (run_folder / "suite").exists()


def test_a_disk_that_is_closed(run_folder, data_dir, monkeypatch, capsys):
    """The figures are shown, whatever cannot be kept; a file stands where a folder must be."""
    asked = ("--checkpoint", run_folder, "--suite", "zero_shot/pets", "--data-dir", data_dir)
    folder = run_folder / "suite"
    folder.mkdir()
    (folder / "sets").touch()
    run_eval(monkeypatch, *asked)
    assert f"zero_shot/pets: {folder / 'sets'}" in capsys.readouterr().err
    assert "zero_shot/pets" in json.loads((folder / "results.json").read_text())["measured"]
    closed = run_folder / "file"
    closed.touch()
    with pytest.raises(SystemExit) as stopped:
        run_eval(monkeypatch, *asked, "--out", closed / "suite")
    assert stopped.value.code == 2
    shown = capsys.readouterr()
    assert "mean_per_class" in shown.out
    assert f"eval.py: {closed / 'suite' / 'results.json'} cannot" in shown.err.splitlines()[-1]


def test_the_ledger_knows_who_asked(tmp_path):
    (task,) = tasks_of(["zero_shot/pets"])
    clip, other = Protocol("clip"), Protocol("deepglint")
    ledger = Ledger(tmp_path, {"parameters": "a"})

    def write(ledger, value, protocol, pictures):
        measured = Measured(task.name, "top_1", value, 0.1, {}, {}, (), None, {}, 0.5)
        path = ledger.path(task, {"pictures": pictures})
        ledger.write(path, measured, protocol)
        return path

    first = write(ledger, 0.5, clip, "old")
    assert ledger.finished(clip)[task.name].value == 0.5
    assert ledger.finished(other) == {}
    assert Ledger(tmp_path, {"parameters": "b"}).finished(clip) == {}
    assert write(ledger, 0.5, other, "old") == first
    assert ledger.finished(clip) == ledger.finished(other) == {task.name: ledger.read(first)}
    second = write(ledger, 0.6, clip, "new")
    os.utime(first, (1, 1))
    assert ledger.finished(clip)[task.name].value == 0.6
    assert ledger.finished(other)[task.name].value == 0.5
    # a file of an earlier version serves whoever asks for it, and nobody else
    values = json.loads(second.read_text())
    del values["asked"]
    second.write_text(json.dumps(values))
    assert ledger.read(second).value == 0.6
    assert ledger.finished(clip)[task.name].value == 0.5
    second.write_text("[")
    assert ledger.read(second) is None


def test_during_training(embedder, data_dir):
    """What train.py calls every N steps."""
    config = EvalConfig(suite=("zero_shot/pets", "retrieval/flickr30k"), suite_mode="deepglint")
    check_datasets(config, str(data_dir))
    said = []
    evaluation = evaluate(embedder, config, str(data_dir), say=said.append)
    assert 0 <= evaluation.metrics["zero_shot/pets/mean_per_class"] <= 1
    assert evaluation.chance["zero_shot/pets/top_1"] == pytest.approx(1 / 37)
    assert evaluation.chance["retrieval/flickr30k/image_to_text/R@1"] == pytest.approx(6 / 36)
    assert EvalConfig.from_dict(json.loads(json.dumps({"suite": list(config.suite)}))).suite
    with pytest.raises(ValueError, match="MNIST is not in"):
        check_datasets(EvalConfig(suite=("zero_shot/mnist",)), str(data_dir))
    with pytest.raises(ValueError, match=r"EvalConfig.suite: the suite has no part 'papers'"):
        EvalConfig(suite=("papers",))


def test_part_names_the_same_pictures_whoever_asks(data_dir):
    entry = CLASSIFICATION["cifar10"]
    first, second = (open_part(entry, "train", "clip", str(data_dir)) for _ in range(2))
    assert first.content_hash == second.content_hash
    assert first.content_hash != open_part(entry, "test", "clip", str(data_dir)).content_hash
    assert first.describe(3)["image"] == b""
    assert first[3]["image"].startswith(b"\x89PNG")
    assert [task.name for task in tasks_of(["retrieval", "retrieval/coco"])] == [
        "retrieval/coco",
        "retrieval/flickr30k",
    ]
