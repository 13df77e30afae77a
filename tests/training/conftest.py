"""A folder of pictures with texts, as a person has one, and runs of train.py upon it."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
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
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of one call of pytest have."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Other workers wait here until this one is through."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def pictures(shared: Path) -> Path:
    """A dataset; see `write_pictures`."""
    folder = shared / "pictures"
    with alone(shared / "pictures.lock"):
        if not (folder / "texts.jsonl").exists():  # written last
            folder.mkdir(exist_ok=True)
            write_pictures(folder)
    return folder


@pytest.fixture(scope="session")
def finished(pictures: Path, shared: Path) -> Path:
    """The workdir of a run that nothing interrupted."""
    workdir = shared / "finished"
    with alone(shared / "finished.lock"):
        if not (workdir / "report.html").exists():  # written last: no run that failed passes
            done = run(train_command(pictures, workdir, "--profile", "3", "4"))
            assert done.returncode == 0, done.stderr[-3000:]
    return workdir
