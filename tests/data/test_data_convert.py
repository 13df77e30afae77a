"""Conversion of what the real writers write: tars, parquet, tables, folders, datasets."""

import csv
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pyarrow
import pyarrow.parquet
import pytest
import tiny_tfds
import webdataset
from picture_files import encoded, jpeg, picture
from PIL import Image
from sklearn.datasets import load_sample_images

from rwkv_jax.data.catalog import open_dataset
from rwkv_jax.data.convert.__main__ import main
from rwkv_jax.data.convert.options import Options
from rwkv_jax.data.convert.run import convert
from rwkv_jax.data.decode import decode_image


def records(out, split="train"):
    source = open_dataset(f"records:{out}", split, "")
    return {source[i]["key"]: source[i] for i in range(len(source))}


def write_tars(folder, tars=2, samples=12):
    folder.mkdir(exist_ok=True)
    for tar in range(tars):
        with webdataset.TarWriter(str(folder / f"{tar:05d}.tar")) as writer:
            for i in range(samples):
                number = tar * samples + i
                writer.write(
                    {
                        "__key__": f"{tar:05d}{i:04d}",
                        "jpg": jpeg(number),
                        "txt": f"raw {number}",
                        "json": {"synthetic": f"synthetic {number}", "width": 40},
                    }
                )
    return folder


def test_webdataset_tars_with_side_files(tmp_path):
    write_tars(tmp_path / "tars")
    side = tmp_path / "generated.csv"
    with open(side, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["key", "generated"])
        rows.writerows([["000000003", "one, generated"], ["000000003", "two"], ["000010011", "x"]])
    options = Options(
        texts={"raw": ("txt",), "synthetic": ("synthetic",)}, side={"generated": str(side)}
    )
    manifest = convert([str(tmp_path / "tars")], tmp_path / "out", options, processes=2)
    assert (manifest["records"], manifest["outcomes"]) == (24, {"written": 24})
    assert manifest["text_kinds"] == ["generated", "raw", "synthetic"]
    assert manifest["notes"]["texts of generated"] == 3
    found = records(tmp_path / "out")
    assert found["000000003"]["image"] == jpeg(3)  # byte for byte
    assert found["000000003"]["texts"] == {
        "generated": ("one, generated", "two"),
        "raw": ("raw 3",),
        "synthetic": ("synthetic 3",),
    }
    assert "generated" not in found["000000004"]["texts"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *("train-00000.arrayrecord", "train-00001.arrayrecord", "train.manifest.json")
    ]


def test_parquet_with_bytes_with_paths_and_as_hugging_face_writes_it(tmp_path):
    for i in range(6):
        (tmp_path / f"p{i}.jpg").write_bytes(jpeg(i))
    captions = [[f"a {i}", f"b {i}"] for i in range(6)]
    columns = {
        "jpg": [jpeg(10 + i) for i in range(6)],
        "path": [f"p{i}.jpg" for i in range(6)],
        "image": [{"bytes": jpeg(20 + i), "path": None} for i in range(6)],
    }
    for name, values in columns.items():
        table = pyarrow.table(
            {
                "photoid": [f"{name}{i}" for i in range(6)],
                name: values,
                "captions": captions,
                "alt": ["alt", None, "", "x", "y", "z"],
                "kind": ["cat", "dog"] * 3,
            }
        )
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=4)
    options = Options(texts={"raw": ("captions", "alt")}, labels={"concept": "kind"})
    sources = [str(tmp_path / f"{name}.parquet") for name in columns]
    manifest = convert(sources, tmp_path / "out", options)
    assert manifest["records"] == 18
    assert len(manifest["shards"]) == 6  # a row group each
    assert manifest["class_names"] == {"concept": ["cat", "dog"]}
    found = records(tmp_path / "out")
    assert found["path1"] == {
        "key": "path1",
        "image": jpeg(1),
        "texts": {"raw": ("a 1", "b 1")},
        "labels": {"concept": 1},
    }
    assert found["jpg0"]["texts"] == {"raw": ("a 0", "b 0", "alt")}
    assert found["image5"]["image"] == jpeg(25)


@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv"])
def test_tables_with_paths(tmp_path, form):
    (tmp_path / "deep").mkdir()
    for i in range(5):
        (tmp_path / "deep" / f"{i}.jpg").write_bytes(jpeg(i))
    outside = tmp_path.parent / f"outside-{form}.jpg"
    outside.write_bytes(jpeg(9))
    rows = [{"file": f"deep/{i}.jpg", "caption": f"text, {i}"} for i in range(5)]
    rows += [
        {"file": "deep/none.jpg", "caption": "x"},
        {"file": f"../{outside.name}", "caption": "x"},
        {"file": str(outside), "caption": "x"},
        {"file": "deep/1.jpg", "caption": " "},
    ]
    table = tmp_path / f"t.{form}"
    with open(table, "w", newline="") as file:
        if form == "jsonl":
            file.write("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n[1]\n")
        else:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if form == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
            file.write("one value\nanother\n")
    manifest = convert([str(table)], tmp_path / "out", Options(rows=3))
    assert manifest["outcomes"] == {
        **{"broken row": 2, "missing file": 1, "no text": 1},
        **{"unsafe path": 2, "written": 5},
    }
    found = list(records(tmp_path / "out").values())
    assert [r["texts"] for r in found] == [{"caption": (f"text, {i}",)} for i in range(5)]
    assert "is outside of" in manifest["examples"]["unsafe path"][0]


def test_a_folder_of_pictures_with_texts_beside_them(tmp_path):
    for i, folder in enumerate(("cats", "cats", "dogs")):
        (tmp_path / "in" / folder).mkdir(parents=True, exist_ok=True)
        place = tmp_path / "in" / folder / f"{i}.png"
        place.write_bytes(encoded(picture(i), "PNG"))
        place.with_suffix(".txt").write_text(f"text {i}")
        place.with_suffix(".json").write_text(json.dumps({"alt": f"alt {i}"}))
    options = Options(
        texts={"raw": ("txt",), "alt": ("alt",), "class": ("folder",)},
        labels={"concept": "folder"},
        split="val",
    )
    convert([str(tmp_path / "in")], tmp_path / "out", options)
    found = records(tmp_path / "out", "val")
    assert found["dogs/2.png"]["texts"] == {
        **{"alt": ("alt 2",), "class": ("dogs",), "raw": ("text 2",)}
    }
    assert [found[key]["labels"]["concept"] for key in sorted(found)] == [0, 0, 1]


def test_datasets_that_the_loader_knows(tmp_path):
    (tmp_path / "in").mkdir()
    with open(tmp_path / "in" / "texts.jsonl", "w") as file:
        for i in range(7):
            (tmp_path / "in" / f"{i}.jpg").write_bytes(jpeg(i))
            line = {"file": f"{i}.jpg", "caption": f"text {i}", "concept": "ab"[i % 2]}
            file.write(json.dumps(line) + "\n")
    options = Options(labels={"concept": "concept"}, rows=3)
    first = convert([f"folder:{tmp_path / 'in'}"], tmp_path / "a", options)
    again = convert([f"records:{tmp_path / 'a'}"], tmp_path / "b", options)
    assert records(tmp_path / "a") == records(tmp_path / "b")
    assert len(first["shards"]) == len(again["shards"]) == 3
    assert first["content_hash"] == again["content_hash"]
    assert records(tmp_path / "b")["5.jpg"]["labels"] == {"concept": 1}


def test_a_tfds_dataset(tmp_path):
    tiny_tfds.prepare(tmp_path)
    options = Options(
        texts={"raw": ("caption",)}, labels={"label": "label"}, data_dir=str(tmp_path)
    )
    convert(["tfds:tiny_pictures"], tmp_path / "out", options)
    found = {r["texts"]["raw"]: r["labels"] for r in records(tmp_path / "out").values()}
    assert found == {(f"picture {i}",): {"label": i % 2} for i in range(4)}


def test_pictures_that_are_fine_stay_and_others_are_mended(tmp_path):
    grey_alpha = picture(1).convert("LA")
    kinds = {
        "a.jpg": jpeg(0),
        "b.png": encoded(picture(2), "PNG"),
        "c.webp": encoded(picture(3), "WEBP", lossless=True),
        "d.png": encoded(grey_alpha, "PNG"),
        "e.jpg": encoded(picture(4).convert("CMYK"), "JPEG"),
        "f.gif": encoded(picture(5).convert("P"), "GIF"),
        "g.tiff": encoded(picture(6), "TIFF"),
        "h.jpg": jpeg(7, (400, 100)),
    }
    (tmp_path / "in").mkdir()
    for name, data in kinds.items():
        (tmp_path / "in" / name).write_bytes(data)
    options = Options(texts={"name": ("name",)}, max_side=200)
    manifest = convert([str(tmp_path / "in")], tmp_path / "out", options)
    assert manifest["outcomes"] == {"written": 8}
    assert manifest["notes"]["pictures encoded anew"] == 5
    found = records(tmp_path / "out")
    assert [name for name in kinds if found[name]["image"] == kinds[name]] == [
        *("a.jpg", "b.png", "c.webp")
    ]
    for name, data in kinds.items():
        image = decode_image(found[name]["image"])
        if name == "h.jpg":
            assert image.shape == (50, 200, 3)
            continue
        assert image.shape == (32, 40, 3)
        # CMYK has another gamut; the rest is the picture as the loader would have decoded it.
        difference = abs(image.astype(int) - decode_image(data).astype(int)).mean()
        assert difference < (12 if name == "e.jpg" else 2), name


def test_pictures_that_are_left_out(tmp_path):
    (tmp_path / "in").mkdir()
    frames = [picture(i) for i in range(3)]
    files = {
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated.webp": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "cut.jpg": jpeg(1, (200, 200))[:-500],
        "cut.png": encoded(picture(2), "PNG")[:-40],
        "empty.jpg": b"",
        "html.jpg": b"<html>not found</html>",
        "small.jpg": jpeg(3, (40, 9)),
        "large.png": encoded(picture(4, (300, 300)), "PNG"),
        "heavy.bmp": encoded(picture(5, (200, 150)), "BMP"),
        "fine.jpg": jpeg(6),
    }
    for name, data in files.items():
        (tmp_path / "in" / name).write_bytes(data)
    options = Options(texts={"name": ("name",)}, min_side=10, max_pixels=80_000, max_bytes=89_000)
    manifest = convert([str(tmp_path / "in")], tmp_path / "out", options)
    assert manifest["outcomes"] == {
        **{"animated image": 2, "broken image": 4, "file too large": 1, "too many pixels": 1},
        **{"too small": 1, "written": 1},
    }
    assert manifest["samples"] == len(files)
    assert manifest["examples"]["too small"] == ["small.jpg: 40 x 9, less than 10 a side"]


@pytest.mark.parametrize(
    ("duplicates", "left_out"),
    [("keep", []), ("exact", ["b0.jpg"]), ("perceptual", ["a1.jpg", "b0.jpg"])],
)
def test_duplicates_of_all_units_are_left_out_and_the_first_stays(tmp_path, duplicates, left_out):
    (tmp_path / "in").mkdir()
    photo = Image.fromarray(load_sample_images().images[0])
    files = {
        "a0.jpg": encoded(photo, "JPEG"),
        "a1.jpg": encoded(photo.resize((400, 267)), "JPEG", quality=60),
        "a2.jpg": jpeg(1, (120, 90)),
        "b0.jpg": jpeg(1, (120, 90)),
        "b1.jpg": jpeg(2, (120, 90)),
    }
    for name, data in files.items():
        (tmp_path / "in" / name).write_bytes(data)
    options = Options(texts={"name": ("name",)}, duplicates=duplicates, rows=3)
    manifest = convert([str(tmp_path / "in")], tmp_path / "out", options)
    assert sorted(set(files) - set(records(tmp_path / "out"))) == left_out
    assert manifest["samples"] == 5
    assert manifest["records"] == 5 - len(left_out)
    assert sorted(e for shown in manifest["examples"].values() for e in shown) == left_out


def digest(folder):
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()
    }


def test_killed_at_any_time_it_finishes_with_the_same_files(tmp_path):
    tars = write_tars(tmp_path / "tars", tars=4, samples=25)
    shutil.copy(tars / "00002.tar", tars / "00004.tar")  # duplicates, so that shards are rewritten
    command = ["convert", str(tars), "--texts", "raw=txt", "--processes", "2", "--out"]
    assert main([*command[1:], str(tmp_path / "whole")]) == 0
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = [sys.executable, "-m", "rwkv_jax.data.convert", *command[1:], str(tmp_path / "out")]
    work = tmp_path / "out" / ".work-train"
    kills = 0
    for wanted in (1, 3):  # units that are done when it is killed
        with subprocess.Popen(process, env=environment, stderr=subprocess.DEVNULL) as running:
            while running.poll() is None and len(list(work.glob("unit-*.json"))) < wanted:
                time.sleep(0.01)
            if running.poll() is None:
                running.send_signal(signal.SIGKILL)
                kills += 1
    assert kills
    done = {p: p.stat().st_mtime_ns for p in work.glob("unit-*.json")}
    assert done
    # Other settings do not go on with it.
    assert main([*command[1:-1], "--min-side", "9", "--out", str(tmp_path / "out")]) == 1
    assert main([*command[1:], str(tmp_path / "out")]) == 0
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")
    assert not work.exists()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    assert main([*command[1:], str(tmp_path / "out")]) == 0  # nothing is left to do
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing.tar"], "There is no nothing.tar. Known are tars, .parquet"),
        (["."], "holds nothing to convert"),
        (["a.tar", "--texts", "raw"], "--texts raw: write NAME=VALUE"),
        (["a.tar", "--side", "raw=none.csv"], "There is no side file none.csv (of 'raw')"),
        (["a.tar", "--distance", "40"], "distance = 40 of 64 bits"),
        (["a.tar", "--processes", "0"], "processes = 0, but it must be 1 or more"),
        (["a.tar", "--split", "../x"], "split = '../x'"),
        (["tfds:nothing"], "'nothing' is not prepared in data"),
    ],
)
def test_what_cannot_be_converted_is_said_in_a_sentence(
    tmp_path, monkeypatch, capsys, arguments, says
):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 1
    assert says in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.json"))


def sentence(capsys):
    """What a failed command says, which is one line behind the progress bars."""
    says = capsys.readouterr().err.rpartition("error: ")[2]
    assert says.count("\n") == 1
    return says


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_no_record_is_an_error_that_does_not_stand_in_the_way_of_another_try(
    tmp_path, capsys, form
):
    write_tars(tmp_path / "tars", tars=1, samples=13)
    (tmp_path / "tars" / "cut.tar").write_bytes(b"no tar at all" * 100)
    rows = {"id": ["0", "1"], "jpg": [jpeg(0), jpeg(1)], "synthetic": ["a", "b"], "txt": ["c", "d"]}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "t.parquet")
    source = {"tar": tmp_path / "tars", "parquet": tmp_path / "t.parquet"}[form]
    command = [str(source), "--out", str(tmp_path / "out"), "--texts"]
    assert main([*command, "raw=captoin"]) == 1
    says = sentence(capsys)
    if form == "tar":
        expected = "0 records of 13 samples, so nothing is written (13 no text (000000000: "
        assert "; 1 damaged archives (cut.tar: ReadError" in says
    else:
        expected = "0 records of 2 samples, so nothing is written (2 no text (0: "
    assert says.startswith(f"{expected}nothing in captoin; it has the fields [")
    assert all(name in says for name in ("'synthetic'", "'txt'"))
    assert list((tmp_path / "out").iterdir()) == []
    assert main([*command, "raw=txt"]) == 0


def test_a_folder_whose_texts_stand_in_a_table_is_named_as_the_dataset_that_it_is(tmp_path, capsys):
    pets = tmp_path / "pets"
    pets.mkdir()
    (pets / "dog.jpg").write_bytes(jpeg(0))
    command = ["--out", str(tmp_path / "out")]
    assert main([str(pets), *command]) == 1
    assert "folder:" not in sentence(capsys)
    (pets / "texts.jsonl").write_text('{"file": "dog.jpg", "caption": "a dog"}\n')
    assert main([f"{pets}/", *command]) == 1
    says = sentence(capsys)
    assert "(1 no text (dog.jpg: no field is known to hold texts; it has the fields" in says
    assert f"with folder:{pets} as source" in says
    assert main([f"folder:{pets}", *command]) == 0


@pytest.mark.parametrize("damage", ["{garbage", "\udcff", "[1]"])
def test_a_damaged_manifest_or_plan_is_named(tmp_path, capsys, damage):
    tars, out = write_tars(tmp_path / "tars", tars=1, samples=1), tmp_path / "out"
    command = [str(tars), "--out", str(out)]
    for file, remedy in (
        (out / "train.manifest.json", "delete it and start again"),
        (out / ".work-train" / "plan.json", f"delete the folder {out / '.work-train'} and start"),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(damage.encode("utf-8", "surrogateescape"))
        assert main(command) == 1
        says = sentence(capsys)
        assert f"{file} is damaged (" in says
        assert remedy in says
        file.unlink()
    assert main(command) == 0
    (out / "train.manifest.json").write_text('{"schema": 1}')
    assert main(command) == 1
    assert "holds another conversion of the split 'train': delete its" in sentence(capsys)


def test_the_names_of_a_tables_columns(tmp_path, capsys):
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    table, out = tmp_path / "t.csv", tmp_path / "out"
    for header, says in (
        (",file,caption", f"column 1 of {table} has no name"),
        ("file,caption,caption ", f"columns 2 and 3 of {table} are both named 'caption'"),
    ):
        table.write_text(f"{header}\n0,0.jpg,a cat\n")
        assert main([str(table), "--out", str(out)]) == 1
        assert says in sentence(capsys)
    table.write_text("file, caption\n0.jpg,a cat\n")
    assert main([str(table), "--out", str(out)]) == 0
    assert next(iter(records(out).values()))["texts"] == {"caption": ("a cat",)}


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("pyarrow", ["a.parquet"]),
        ("pyarrow", ["a.csv", "--side", "raw=a.parquet"]),
        ("imagehash", ["a.csv", "--duplicates", "perceptual"]),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(
    tmp_path, monkeypatch, capsys, module, arguments
):
    monkeypatch.chdir(tmp_path)
    for name in ("a.parquet", "a.csv"):
        (tmp_path / name).write_text("file,caption\n", encoding="utf-8")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == module else found(name)
    )
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 1
    says = capsys.readouterr().err
    assert f"needs {module}, which is not installed: pip install -e '.[convert]'" in says
    assert says.count("\n") == 1


@pytest.mark.ray
def test_ray_writes_the_same_files(tmp_path):
    tars = write_tars(tmp_path / "tars", tars=4)
    options = Options(texts={"raw": ("txt",)})
    convert([str(tars)], tmp_path / "here", options, processes=2)
    convert([str(tars)], tmp_path / "ray", options, ray="local")
    assert digest(tmp_path / "here") == digest(tmp_path / "ray")
