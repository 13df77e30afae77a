"""A run's folder: what is refused before anything is written, and that one process holds it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import TINY, environment

from rwkv_jax.config import ConfigError, load_config
from rwkv_jax.training.workdir import CONFIG_FILE, alone_in, check_workdir

CONFIG = load_config(TINY)


def test_a_new_folder_and_the_same_run_are_taken(tmp_path: Path):
    check_workdir(tmp_path / "new", CONFIG)
    check_workdir(tmp_path, CONFIG)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(CONFIG.to_dict()))
    (tmp_path / "model.json").write_text("{}")
    check_workdir(tmp_path, CONFIG)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ("model.json", r"holds model.json, but no config.json of a run"),
        ("params/x", r"holds params, but no config.json of a run"),
        ("checkpoints/4/x", r"holds checkpoints, but no config.json of a run"),
    ],
)
def test_what_a_run_would_overwrite_is_refused(tmp_path: Path, held: str, message: str):
    (tmp_path / held).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / held).write_text("kept")
    with pytest.raises(ConfigError, match=message):
        check_workdir(tmp_path, CONFIG)
    assert (tmp_path / held).read_text() == "kept"


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '{"model": 5}'])
def test_a_damaged_configuration_is_named(tmp_path: Path, text: str):
    (tmp_path / CONFIG_FILE).write_text(text)
    with pytest.raises(ConfigError, match=r"config.json is damaged|holds a run of another"):
        check_workdir(tmp_path, CONFIG)


def test_a_file_is_no_workdir(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is a file: name a folder"):
        check_workdir(tmp_path / "file", CONFIG)


def test_one_process_holds_a_folder_until_it_ends(tmp_path: Path):
    hold = (
        "import sys\nfrom pathlib import Path\n"
        "from rwkv_jax.training.workdir import alone_in\n"
        f"with alone_in(Path({str(tmp_path)!r})):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(ConfigError, match=rf"by another process \({other.pid} on "),
            alone_in(tmp_path),
        ):
            pass
        other.kill()  # however it ends
    with alone_in(tmp_path):
        pass
