"""A folder of pictures with texts, as a person has one, and runs of train.py upon it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import run, train_command

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "grey": (128,) * 3}


def write_pictures(folder: Path) -> None:
    """32 pictures: a square of one of four colours at one of eight places."""
    rows = []
    for name, colour in COLOURS.items():
        for place in range(8):
            image = np.full((24, 24, 3), 255, np.uint8)
            image[place : place + 12, place : place + 12] = colour
            file = f"{name}_{place}.png"
            Image.fromarray(image).save(folder / file)
            rows.append({"file": file, "text": f"a {name} square at place {place}"})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "texts.jsonl").write_text(lines, encoding="utf-8")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset; see `write_pictures`."""
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder)
    return folder


@pytest.fixture(scope="session")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    done = run(train_command(pictures, workdir, "--profile", "3", "4"))
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir
