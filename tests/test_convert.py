"""The authors' weights into our format, and runs into weights folders."""

import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.flax import save_file

import rwkv_jax
from rwkv_jax.convert.__main__ import export, from_torch
from rwkv_jax.convert.torch_layout import ConversionError
from rwkv_jax.weights import WeightsError, load_weights

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "fixtures" / "golden"
CONFIG = GOLDEN / "rwkv_clip_tiny.json"
NPZ = GOLDEN / "rwkv_clip_tiny_weights.npz"


@pytest.fixture(scope="module")
def tensors():
    with np.load(NPZ, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "tiny"
    from_torch(NPZ, CONFIG, out)
    return out


def test_converted_model_gives_the_authors_features(converted):
    model = rwkv_jax.load(converted, dtype="float32")
    with np.load(GOLDEN / "rwkv_clip_tiny.npz", allow_pickle=False) as golden:
        image = model.encode_image(jnp.asarray(golden["image_32x32"].transpose(0, 2, 3, 1)))
        chex.assert_trees_all_close(image, golden["image_features_32x32"], rtol=1e-4, atol=1e-5)
        text = model.encode_text(golden["text"])
        chex.assert_trees_all_close(text, golden["text_features"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(model.logit_scale, golden["logit_scale"], rtol=1e-5)


def test_parity_line(tmp_path, capsys, tensors):
    from_torch(NPZ, CONFIG, tmp_path / "w")
    line = capsys.readouterr().out
    count = sum(tensor.size for tensor in tensors.values())
    assert f"{count:,} parameters" in line
    assert f"{len(tensors)} tensors" in line
    assert "largest difference" in line
    assert ": 0;" in line
    digest = json.loads((tmp_path / "w" / "model.json").read_text())["params_sha256"]
    assert digest in line


def test_safetensors_with_wrapped_names_and_bfloat16(tmp_path, tensors, converted):
    # As the authors' training saves them: wrapped twice, the text tower's decays in bfloat16.
    wrapped = {
        f"module._orig_mod.{name}": jnp.asarray(
            tensor, jnp.bfloat16 if "text" in name and name[-10:] == "time_decay" else jnp.float32
        )
        for name, tensor in tensors.items()
    }
    save_file(wrapped, tmp_path / "w.safetensors")
    from_torch(tmp_path / "w.safetensors", CONFIG, tmp_path / "w")
    ours, wanted = load_weights(tmp_path / "w").params, load_weights(converted).params
    decay = ours["text"]["blocks"]["spatial_mix"].pop("decay")
    exact = wanted["text"]["blocks"]["spatial_mix"].pop("decay")
    chex.assert_trees_all_equal(ours, wanted)
    chex.assert_trees_all_equal(decay, exact.astype(jnp.bfloat16).astype(jnp.float32))


def test_every_wrong_key_is_named_at_once(tmp_path, tensors):
    wrong = dict(tensors)
    del wrong["text_model.emb.weight"], wrong["image_model.layers.2.att.time_faaaa"]
    wrong["text_model.head.weight"] = np.zeros((3, 4), np.float32)
    wrong["logit_scale"] = np.zeros(2, np.float32)
    np.savez(tmp_path / "w.npz", **wrong)
    with pytest.raises(ConversionError) as caught:
        from_torch(tmp_path / "w.npz", CONFIG, tmp_path / "out")
    told = str(caught.value)
    assert "2 missing" in told
    assert "text_model.emb.weight (512, 64)" in told
    assert "image_model.layers.2.att.time_faaaa (2, 32)" in told
    assert "1 unexpected: text_model.head.weight (3, 4)" in told
    assert "1 wrongly shaped: logit_scale (2,), expected ()" in told
    assert [path.name for path in tmp_path.iterdir()] == ["w.npz"]


def test_values_that_are_not_finite_are_refused(tmp_path, tensors):
    broken = tensors["text_model.emb.weight"].copy()
    broken[3, 5] = np.nan
    np.savez(tmp_path / "w.npz", **tensors | {"text_model.emb.weight": broken})
    with pytest.raises(ConversionError, match=r"NaN or infinity in text_model\.emb\.weight"):
        from_torch(tmp_path / "w.npz", CONFIG, tmp_path / "out")


def test_a_name_that_comes_twice(tmp_path, tensors):
    twice = tensors | {"module.logit_scale": tensors["logit_scale"]}
    np.savez(tmp_path / "w.npz", **twice)
    with pytest.raises(ConversionError, match="logit_scale twice"):
        from_torch(tmp_path / "w.npz", CONFIG, tmp_path / "out")


def test_pickles_inside_npz_are_not_read(tmp_path, tensors):
    np.savez(tmp_path / "w.npz", **tensors | {"logit_scale": np.array({"x": 1})})
    with pytest.raises(ConversionError, match="logit_scale must hold floating-point"):
        from_torch(tmp_path / "w.npz", CONFIG, tmp_path / "out")


def test_a_huge_array_is_refused_before_it_is_unpacked(tmp_path):
    header = b"\x93NUMPY\x01\x00v\x00" + (
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117) + b"\n"
    )
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("logit_scale.npy", header)
    with pytest.raises(ConversionError, match=r"logit_scale \(1000000000000,\), expected \(\)"):
        from_torch(tmp_path / "w.npz", CONFIG, tmp_path / "out")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_truncated_files(tmp_path, tensors, suffix):
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".npz":
        np.savez(whole, **tensors)
    else:
        save_file({name: jnp.asarray(tensor) for name, tensor in tensors.items()}, whole)
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[:100_000])
    with pytest.raises(ConversionError, match=f"cut{suffix} cannot be read"):
        from_torch(cut, CONFIG, tmp_path / "out")


def test_bad_arguments(tmp_path, converted):
    with pytest.raises(WeightsError, match="exists already"):
        from_torch(NPZ, CONFIG, converted)
    with pytest.raises(FileNotFoundError, match=r"none\.npz is no file"):
        from_torch(tmp_path / "none.npz", CONFIG, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"none\.json is no file"):
        from_torch(NPZ, tmp_path / "none.json", tmp_path / "out")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json"):
        from_torch(NPZ, tmp_path / "broken.json", tmp_path / "out")
    (tmp_path / "w.txt").touch()
    with pytest.raises(ConversionError, match=r"one of \.npz, .*got '\.txt'"):
        from_torch(tmp_path / "w.txt", CONFIG, tmp_path / "out")


def test_export_is_exact_and_says_so(tmp_path, capsys, converted):
    export(converted, tmp_path / "w")
    assert ": 0;" in capsys.readouterr().out
    chex.assert_trees_all_equal(load_weights(tmp_path / "w").params, load_weights(converted).params)


def refused(checkpoint, out, *before):
    """The export's exit status, and the one line it says."""
    result = subprocess.run(
        [
            *(*before, sys.executable, "-m", "rwkv_jax.convert", "export"),
            *("--checkpoint", str(checkpoint), "--out", str(out)),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
            "JAX_PLATFORMS": "cpu",
            "PATH": "",
            "PYTHONDONTWRITEBYTECODE": "1",  # files of limited size would be left cut off
        },
    )
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    return result.returncode, result.stderr


def test_command_line_errors_are_one_line(tmp_path):
    assert refused(tmp_path / "none", tmp_path / "out")[0] == 1


def test_a_disk_that_is_full_or_closed_is_one_line(tmp_path, converted):
    full = ("/bin/sh", "-c", 'ulimit -f 20; exec "$@"', "sh")  # no file of more than 20 blocks
    code, told = refused(converted, tmp_path / "out", *full)
    assert code == 2
    assert f"{tmp_path / 'out'} cannot be written" in told
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    code, told = refused(converted, tmp_path / "file" / "out")
    assert code == 2
    assert f"{tmp_path / 'file'} cannot be written" in told


@pytest.mark.torch
def test_pt_file_with_wrapped_names_and_bfloat16(tmp_path, converted):
    from_torch(GOLDEN / "rwkv_clip_tiny.pt", CONFIG, tmp_path / "w")
    chex.assert_trees_all_equal(load_weights(tmp_path / "w").params, load_weights(converted).params)


@pytest.mark.torch
def test_a_pt_file_runs_no_code(tmp_path):
    import torch

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"logit_scale": Trap()}, tmp_path / "w.pt")
    with pytest.raises(ConversionError, match=r"w\.pt cannot be read"):
        from_torch(tmp_path / "w.pt", CONFIG, tmp_path / "out")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ConversionError, match=r"old\.pt cannot be read"):
        from_torch(tmp_path / "old.pt", CONFIG, tmp_path / "out")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.torch
def test_a_compressed_pt_file_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", b"\0" * 1_000_000)
    with pytest.raises(ConversionError, match="is compressed"):
        from_torch(tmp_path / "w.pt", CONFIG, tmp_path / "out")
