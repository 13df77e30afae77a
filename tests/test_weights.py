"""Weights folders and runs on disk: written, read, and refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

import rwkv_jax
from rwkv_jax.models import ClipConfig, ImageConfig, TextConfig, abstract_params
from rwkv_jax.weights import (
    WeightsError,
    load_weights,
    save_weights,
    write_model_json,
)

ROOT = Path(__file__).parents[1]
CONFIG = ClipConfig(
    ImageConfig(16, 8, width=16, heads=2, depth=2, hidden_rate=2),
    TextConfig(vocab_size=49408, context_length=8, width=16, heads=2, depth=1, hidden=32),
)


def some_params(config=CONFIG, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: np.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype),
        abstract_params(config),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    save_weights(folder, CONFIG, some_params())
    return folder


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints at steps 9 and 10, as training writes them; 10 has an average."""
    write_model_json(tmp_path, CONFIG)
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        for step in (9, 10):
            trees = {"params": some_params(seed=step)}
            if step == 10:
                trees["ema"] = some_params(seed=11)
            saved = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
            meta = ocp.args.JsonSave({"step": step})
            manager.save(step, args=ocp.args.Composite(meta=meta, **saved))
        manager.wait_until_finished()
    return tmp_path


def largest_file(folder: Path) -> Path:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def test_round_trip_is_exact(folder):
    loaded = load_weights(folder)
    assert loaded.config == CONFIG
    assert loaded.step is None
    chex.assert_trees_all_equal(loaded.params, some_params())
    assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(loaded.params))


def test_loaded_model_takes_pictures_and_texts(folder):
    model = rwkv_jax.load(folder)
    pictures = [Image.new("RGB", (40, 20), "red"), Image.new("L", (9, 30))]
    pixels = model.preprocess(pictures)
    chex.assert_shape(pixels, (2, 16, 16, 3))
    # Red, normalised by CLIP's mean and standard deviation: (1 - 0.48145466) / 0.26862954.
    np.testing.assert_allclose(pixels[0, 0, 0, 0], 1.9303361, rtol=1e-5)
    features = model.encode_image(pixels)
    tokens = model.tokenize(["a red square", "x" * 10_000])
    chex.assert_shape(tokens, (2, 8))
    texts = model.encode_text(tokens)
    for got in (features, texts):
        chex.assert_shape(got, (2, 16))
        chex.assert_type(got, jnp.float32)
        chex.assert_tree_all_finite(got)
    np.testing.assert_allclose(model.logit_scale, np.exp(some_params()["logit_scale"]), rtol=1e-6)


def test_loaded_model_refuses_what_it_would_get_wrong(folder):
    model = rwkv_jax.load(folder)
    with pytest.raises(ValueError, match="got uint8: `preprocess`"):
        model.encode_image(np.zeros((1, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match=r"\[0, 49408\), got 0 to 49408"):
        model.encode_text(np.array([[0, 49408]], np.int32))
    with pytest.raises(ValueError, match="at most 8"):
        model.encode_text(np.zeros((1, 9), np.int32))
    with pytest.raises(ValueError, match="'half' is unknown"):
        rwkv_jax.load(folder, dtype="half")


def test_a_small_vocabulary_cannot_take_clips_tokens(tmp_path):
    text = TextConfig(vocab_size=512, context_length=8, width=16, heads=2, depth=1, hidden=32)
    config = ClipConfig(CONFIG.image, text)
    save_weights(tmp_path / "w", config, some_params(config))
    with pytest.raises(ValueError, match=r"512 tokens.*49408"):
        rwkv_jax.load(tmp_path / "w").tokenize(["a"])


def test_newest_step_of_a_run(run):
    assert load_weights(run).step == 10
    chex.assert_trees_all_equal(load_weights(run).params, some_params(seed=10))


def test_one_step_of_a_run(run):
    loaded = load_weights(run / "checkpoints" / "9")
    assert loaded.step == 9
    chex.assert_trees_all_equal(loaded.params, some_params(seed=9))


def test_the_average_of_a_run(run):
    averaged = load_weights(run, "ema")
    assert averaged.step == 10
    chex.assert_trees_all_equal(averaged.params, some_params(seed=11))
    with pytest.raises(
        WeightsError, match=r"checkpoints/9 holds no average .*optimizer\.ema_decay"
    ):
        load_weights(run / "checkpoints" / "9", "ema")


def test_a_checkpoint_cut_off_while_written_is_not_picked_up(run):
    newest = run / "checkpoints" / "10"
    newest.rename(newest.with_name("11.orbax-checkpoint-tmp-1"))
    assert load_weights(run).step == 9


def test_truncated_checkpoint_names_its_path_and_the_one_before(run):
    victim = largest_file(run / "checkpoints" / "10" / "params")
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    with pytest.raises(WeightsError, match=r"10/params is damaged.*checkpoints/9"):
        load_weights(run)


def test_checkpoint_without_its_metadata(run):
    (run / "checkpoints" / "10" / "params" / "_METADATA").unlink()
    with pytest.raises(WeightsError, match=r"10/params is damaged.*checkpoints/9"):
        load_weights(run)


def test_flipped_bits_are_noticed(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    victim = largest_file(copy)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0xFF
    victim.write_bytes(content)
    with pytest.raises(WeightsError, match="is damaged"):
        load_weights(copy)


def test_checkpoint_of_another_model_names_the_differences(run):
    image = ImageConfig(16, 8, width=16, heads=2, depth=3, hidden_rate=2, with_cls_token=True)
    write_model_json(run, ClipConfig(image, CONFIG.text))
    with pytest.raises(WeightsError, match="another model's") as caught:
        load_weights(run)
    assert "image/cls_token (16,) is missing" in str(caught.value)
    assert "image/blocks/norm1/scale is (2, 16), expected (3, 16)" in str(caught.value)
    assert "text/" not in str(caught.value)


def test_nothing_to_load(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        rwkv_jax.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="neither weights"):
        rwkv_jax.load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="first checkpoint"):
        rwkv_jax.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 2}, "version is 2"),
        ({"preprocessing": {"mean": [0, 0, 0]}}, "preprocessing"),
        ({"config": {"image": {}, "text": {}}}, "missing fields"),
    ],
)
def test_unusable_model_json(folder, tmp_path, change, told):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    content = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(content | change))
    with pytest.raises(WeightsError, match=told):
        load_weights(copy)


def test_existing_folder_is_left_alone(folder):
    with pytest.raises(WeightsError, match="exists already"):
        save_weights(folder, CONFIG, some_params(seed=1))
    chex.assert_trees_all_equal(load_weights(folder).params, some_params())


def test_nothing_is_left_of_a_failed_write(tmp_path):
    params = some_params()
    del params["image"]["positions"]
    with pytest.raises(ValueError, match="image/positions"):
        save_weights(tmp_path / "w", CONFIG, params)
    assert list(tmp_path.iterdir()) == []


SAVE_SHARDED = """
import json, sys
import jax, numpy as np, orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec
from rwkv_jax.models import ClipConfig, abstract_params
from rwkv_jax.weights import write_model_json
from pathlib import Path

run, config = Path(sys.argv[1]), ClipConfig.from_dict(json.loads(sys.argv[2]))
mesh = jax.make_mesh((8,), ("fsdp",))
rng = np.random.default_rng(0)

def sharded(leaf):
    value = np.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype)
    last = leaf.shape and leaf.shape[-1] % 8 == 0
    spec = PartitionSpec(*[None] * (len(leaf.shape) - 1), "fsdp") if last else PartitionSpec()
    return jax.device_put(value, NamedSharding(mesh, spec))

params = jax.tree.map(sharded, abstract_params(config))
assert len(params["text"]["embedding"].sharding.device_set) == 8
write_model_json(run, config)
with ocp.CheckpointManager(run / "checkpoints") as manager:
    manager.save(1, args=ocp.args.Composite(params=ocp.args.StandardSave(params)))
    manager.wait_until_finished()
"""


def test_saved_from_eight_devices_restored_on_one(tmp_path):
    subprocess.run(
        [sys.executable, "-c", SAVE_SHARDED, str(tmp_path), json.dumps(CONFIG.to_dict())],
        check=True,
        cwd=ROOT,
        env=os.environ
        | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
        },
    )
    chex.assert_trees_all_equal(load_weights(tmp_path).params, some_params())


def test_import_is_light():
    code = "import sys, rwkv_jax; sys.exit(any(m in sys.modules for m in ('jax', 'flax', 'cv2')))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment)
