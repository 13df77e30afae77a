"""A folder of drawn shapes, and a run of a tiny model over it, as train.py leaves one."""

import csv
import dataclasses
import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rwkv_jax.config import DataConfig, RunConfig
from rwkv_jax.data.config import LoaderConfig
from rwkv_jax.evaluation.config import (
    EvalConfig,
    LinearProbeConfig,
    RetrievalConfig,
    ZeroShotConfig,
)
from rwkv_jax.evaluation.embed import embedder_from
from rwkv_jax.models import ClipConfig, ImageConfig, RwkvClip, TextConfig
from rwkv_jax.models.params import params_to_dict
from rwkv_jax.weights import save_weights

COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (40, 60, 210)}
SHAPES = ("disc", "square", "cross")
NASTY = '<script>alert("x")</script> & a disc'
BATCH = 16


def draw(shape, colour, size, rng):
    """An RGB picture with one shape somewhere in the middle."""
    picture = np.full((size, size, 3), 255, np.uint8)
    x, y = (size // 2 + rng.integers(-3, 4, 2)).tolist()
    r = size // 4
    if shape == "disc":
        cv2.circle(picture, (x, y), r, colour, -1)
    elif shape == "square":
        cv2.rectangle(picture, (x - r, y - r), (x + r, y + r), colour, -1)
    else:
        cv2.line(picture, (x - r, y - r), (x + r, y + r), colour, 4)
        cv2.line(picture, (x - r, y + r), (x + r, y - r), colour, 4)
    return picture


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """The name of a dataset of 45 training and 45 test pictures; one test picture is broken."""
    folder = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    rows = []
    for split in ("train", "test"):
        for i in range(45):
            shape, colour = SHAPES[i % 3], tuple(COLOURS)[i // 3 % 3]
            name = f"{split}_{i}.png"
            picture = draw(shape, COLOURS[colour], 32, rng)
            assert cv2.imwrite(str(folder / name), picture[..., ::-1])
            rows.append(
                {
                    "file": name,
                    "caption": NASTY if i == 0 else f"a {colour} {shape}, number {i}",
                    "words": f"{shape} {colour}",
                    "label:shape": shape,
                    "split": split,
                }
            )
    (folder / "test_7.png").write_bytes(b"this is no picture")
    with (folder / "texts.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return f"folder:{folder}"


@pytest.fixture(scope="session")
def run_config(shapes):
    return RunConfig(
        model=ClipConfig(
            image=ImageConfig(
                image_size=16, patch_size=8, width=16, heads=2, depth=2, hidden_rate=2
            ),
            text=TextConfig(context_length=12, width=16, heads=2, depth=1, hidden=32),
        ),
        data=DataConfig(shapes, "train", LoaderConfig(image_size=16, context_length=12)),
        batch_size=8,
        steps=2,
        precision="float32",
        eval=EvalConfig(
            retrieval=(RetrievalConfig(shapes, "test", ks=(1, 5)),),
            zero_shot=(ZeroShotConfig(shapes, "test", "shape", "emoji", ks=(1, 2)),),
            linear_probe=(LinearProbeConfig(shapes, "train", "test", "shape"),),
            batch_size=BATCH,
        ),
    )


@pytest.fixture(scope="session")
def params(run_config):
    def init():
        return params_to_dict(nnx.state(RwkvClip(run_config.model, rngs=nnx.Rngs(3))))

    return jax.jit(init)()


@pytest.fixture
def embedder(run_config, params):
    return embedder_from(run_config.model, params, dtype=jnp.float32, batch_size=BATCH)


@pytest.fixture
def run_folder(run_config, params, tmp_path):
    """A folder with the weights, the config and the log of a run."""
    folder = tmp_path / "run"
    save_weights(folder, run_config.model, params)
    (folder / "config.json").write_text(json.dumps(run_config.to_dict()))
    rows = [
        {
            "step": step,
            "time": 1e9 + step,
            "train/loss": 3 / step,
            "train/step_seconds": 0.5,
            "train/images_per_second": 16.0,
            "retrieval/test/text_to_image/R@5": 0.1 * step,
        }
        for step in (1, 2)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines + '{"step": 3, "train/lo')
    return folder


@pytest.fixture(scope="session")
def config_file(run_config, tmp_path_factory):
    """A config file that asks for one retrieval only."""
    path = tmp_path_factory.mktemp("configs") / "one.py"
    only = dataclasses.replace(run_config, eval=EvalConfig(run_config.eval.retrieval))
    rooms = ("config", "data.config", "evaluation.config", "models", "training.config")
    source = "".join(f"from rwkv_jax.{room} import *\n" for room in rooms)
    path.write_text(source + f"config = {only!r}\n")
    return path
