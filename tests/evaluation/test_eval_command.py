"""eval.py as a person calls it: a restored model gives exactly the live model's numbers."""

import errno
import importlib.util
import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rwkv_jax.evaluation.run import evaluate
from rwkv_jax.training.checkpoint import RunCheckpoints
from rwkv_jax.training.config import CheckpointConfig
from rwkv_jax.training.state import TrainState
from rwkv_jax.weights import params_sha256

ROOT = Path(__file__).resolve().parents[2]


def run_eval(monkeypatch, *arguments):
    spec = importlib.util.spec_from_file_location("eval_command", ROOT / "eval.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["eval.py", *map(str, arguments)])
    module.main()


def test_restored_equals_live(run_folder, run_config, embedder, monkeypatch, capsys):
    run_eval(monkeypatch, "--checkpoint", run_folder)
    results = json.loads((run_folder / "results.json").read_text())
    live = evaluate(embedder, run_config.eval, "", say=lambda line: None)
    assert results["metrics"] == live.metrics
    assert results["chance"] == live.chance
    assert results["datasets"] == live.datasets
    assert len(results["checkpoint"]["parameter_hash"]) == 64
    assert results["prompts"]["emoji"]["templates"][0] == "{}"
    assert {"python", "jax", "device"} <= results["versions"].keys()
    out = capsys.readouterr().out
    assert "retrieval/test/text_to_image/R@5" in out
    assert str(run_folder / "results.json") in out


def test_another_config_and_file(run_folder, config_file, monkeypatch, tmp_path):
    out = tmp_path / "elsewhere" / "mine.json"
    run_eval(monkeypatch, "--checkpoint", run_folder, "--config", config_file, "--out", out)
    metrics = json.loads(out.read_text())["metrics"]
    assert metrics
    assert all(name.startswith("retrieval/") for name in metrics)
    assert out.with_suffix(".npz").is_file()
    assert not (run_folder / "results.json").exists()


def test_another_config_leaves_the_runs_results_alone(run_folder, config_file, monkeypatch):
    (run_folder / "results.json").write_text("the run's own")
    run_eval(monkeypatch, "--checkpoint", run_folder, "--config", config_file)
    assert json.loads((run_folder / "results_one.json").read_text())["metrics"]
    assert (run_folder / "results_one.npz").is_file()
    assert (run_folder / "results.json").read_text() == "the run's own"
    assert not (run_folder / "results.npz").exists()


def test_one_step_of_a_run_leaves_the_runs_results_alone(
    run_folder, config_file, params, monkeypatch
):
    """The step's folder is Orbax's, and results.json is the last step's."""
    ema = jax.tree.map(lambda leaf: leaf / 2, params)
    state = TrainState(jnp.int32(4), params, optax.adam(1e-3).init(params), ema)
    with RunCheckpoints(run_folder, CheckpointConfig()) as checkpoints:
        checkpoints.save(state, {})
    run_eval(monkeypatch, "--checkpoint", run_folder / "checkpoints" / "4")
    results = json.loads((run_folder / "results_4.json").read_text())
    assert results["checkpoint"]["step"] == 4
    assert not (run_folder / "results.json").exists()

    assert results["checkpoint"]["parameter_hash"] == params_sha256(params)
    run_eval(monkeypatch, "--checkpoint", run_folder / "checkpoints" / "4", "--params", "ema")
    results = json.loads((run_folder / "results_4.json").read_text())
    assert results["checkpoint"]["parameter_hash"] == params_sha256(ema)

    step = run_folder / "checkpoints" / "4"
    run_eval(monkeypatch, "--checkpoint", step, "--config", config_file)
    assert json.loads((run_folder / "results_4_one.json").read_text())["checkpoint"]["step"] == 4


def test_missing_things_are_one_sentence(run_folder, config_file, monkeypatch, capsys, tmp_path):
    def refusal(*arguments):
        with pytest.raises(SystemExit) as stopped:
            run_eval(monkeypatch, *arguments)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    absent = tmp_path / "absent"
    assert str(absent) in refusal("--checkpoint", absent, "--config", config_file)
    assert f"there is no folder {absent}" in refusal("--checkpoint", absent)
    step = run_folder / "checkpoints" / "7"
    assert f"there is no folder {step}" in refusal("--checkpoint", step)
    assert f"there is no folder {absent}" in refusal("--checkpoint", absent, "--suite", "paper")
    assert "--config" in refusal("--checkpoint", tmp_path)
    assert "nowhere.py" in refusal("--checkpoint", run_folder, "--config", "nowhere.py")
    assert "no average" in refusal("--checkpoint", run_folder, "--params", "ema")
    assert ".json" in refusal("--checkpoint", run_folder, "--out", tmp_path / "results.txt")

    config = json.loads((run_folder / "config.json").read_text())
    config["eval"]["retrieval"][0]["dataset"] = f"folder:{absent}"
    (run_folder / "config.json").write_text(json.dumps(config))
    message = refusal("--checkpoint", run_folder)
    assert str(absent) in message
    assert "Traceback" not in message
    (run_folder / "config.json").write_text('{"eval": ')
    assert "config.json is damaged" in refusal("--checkpoint", run_folder)
    assert not (run_folder / "results.json").exists()


def test_no_picture_can_be_read(run_folder, monkeypatch, capsys, tmp_path):
    pictures = tmp_path / "broken"
    pictures.mkdir()
    (pictures / "one.png").write_bytes(b"this is no picture")
    (pictures / "texts.csv").write_text("file,caption,split\none.png,a disc,test\n")
    config = json.loads((run_folder / "config.json").read_text())
    config["eval"] |= {"zero_shot": [], "linear_probe": []}
    config["eval"]["retrieval"][0]["dataset"] = f"folder:{pictures}"
    (run_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit) as stopped:
        run_eval(monkeypatch, "--checkpoint", run_folder)
    assert stopped.value.code == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("eval.py: no picture can be read")


def test_a_disk_that_is_full_or_closed(run_folder, config_file, monkeypatch, capsys, tmp_path):
    """The figures are shown, what was there stays, and nothing half written is left."""

    def refusal(out):
        with pytest.raises(SystemExit) as stopped:
            run_eval(monkeypatch, "--checkpoint", run_folder, "--config", config_file, "--out", out)
        assert stopped.value.code == 2
        shown = capsys.readouterr()
        assert "retrieval/test/text_to_image/R@5" in shown.out
        assert "results: " not in shown.out
        return shown.err.strip().splitlines()[-1]

    file = tmp_path / "file"
    file.touch()
    # a file where a folder must be: closed to the administrator, too, who may run the tests
    assert f"eval.py: {file / 'mine.npz'} cannot be written" in refusal(file / "mine.json")

    def full(file, **arrays):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    folder = tmp_path / "full"
    folder.mkdir()
    for name in ("mine.json", "mine.npz"):
        (folder / name).write_text("old")
    told = refusal(folder / "mine.json")
    assert f"{folder / 'mine.npz'} cannot be written or read (No space left on device)" in told
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "mine.json": "old",
        "mine.npz": "old",
    }


def test_stopped_by_hand(run_folder, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("rwkv_jax.load", stop)
    monkeypatch.setattr(os, "_exit", sys.exit)  # the tests go on
    for more in ((), ("--suite", "paper")):
        with pytest.raises(SystemExit) as stopped:
            run_eval(monkeypatch, "--checkpoint", run_folder, *more)
        assert stopped.value.code == 130
        assert capsys.readouterr().err == "eval.py: stopped; what was finished is kept\n"
