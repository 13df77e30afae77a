"""The catalog of the papers' sets: sizes, classes, prompts, and what lies on disk."""

import json

import cv2
import numpy as np
import pytest

from rwkv_jax.data.records import DatasetError
from rwkv_jax.evaluation.catalog.classes import match_classes, prompts_of
from rwkv_jax.evaluation.catalog.classification import CLASSIFICATION, LINEAR_PROBE, ZERO_SHOT
from rwkv_jax.evaluation.catalog.derived import clevr_counts, kitti_distance, voc_classes
from rwkv_jax.evaluation.catalog.draw import drawn, torch_permutation
from rwkv_jax.evaluation.catalog.entry import Draw
from rwkv_jax.evaluation.catalog.find import (
    MissingSetError,
    open_captions,
    open_part,
    open_validation,
)
from rwkv_jax.evaluation.catalog.retrieval_sets import RETRIEVAL
from rwkv_jax.evaluation.suite.tasks import tasks_of

# Classes of table 9 of Radford et al. 2021, but for Food-101 (102 there) and FER2013 (8 there).
CLASSES = {
    "food101": 101, "cifar10": 10, "cifar100": 100, "birdsnap": 500, "sun397": 397, "cars": 196,
    "aircraft": 100, "voc2007": 20, "dtd": 47, "pets": 37, "caltech101": 102, "flowers102": 102,
    "mnist": 10, "fer2013": 7, "stl10": 10, "eurosat": 10, "resisc45": 45, "gtsrb": 43,
    "kitti_distance": 4, "country211": 211, "patch_camelyon": 2, "ucf101": 101,
    "kinetics700": 700, "clevr_counts": 8, "hateful_memes": 2, "rendered_sst2": 2,
    "imagenet": 1000,
}  # fmt: skip
TEMPLATES = {"imagenet": 80, "cifar10": 18, "food101": 1, "ucf101": 48, "caltech101": 34}
MEAN_PER_CLASS = {"aircraft", "pets", "caltech101", "flowers102"}
PNG = cv2.imencode(".png", np.full((8, 8, 3), 200, np.uint8))[1].tobytes()


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PNG)


def test_sets_of_the_papers():
    assert {name: len(prompts_of(name).classes) for name in LINEAR_PROBE} == CLASSES
    assert len(LINEAR_PROBE) == 27
    assert len(ZERO_SHOT) == 11
    assert {n: len(prompts_of(n).templates) for n in TEMPLATES} == TEMPLATES
    by_metric = {m: {n for n, e in CLASSIFICATION.items() if e.metric == m} for m in (
        "mean_per_class", "map_11", "roc_auc", "top_1_5")}  # fmt: skip
    assert by_metric == {
        "mean_per_class": MEAN_PER_CLASS,
        "map_11": {"voc2007"},
        "roc_auc": {"hateful_memes"},
        "top_1_5": {"kinetics700"},
    }
    for name in LINEAR_PROBE:
        prompts = prompts_of(name)
        assert all("{}" in template for template in prompts.templates), name
        assert all(names and all(names) for names in prompts.classes), name
    assert len(tasks_of(["paper"])) == 11 + 27 + 2
    with pytest.raises(ValueError, match="no set 'cifar11' of zero_shot"):
        tasks_of(["zero_shot/cifar11"])
    with pytest.raises(ValueError, match="no part 'probe'"):
        tasks_of(["probe"])


@pytest.mark.parametrize(
    "name", [n for n, e in CLASSIFICATION.items() if e.tfds and not e.tfds.derive]
)
def test_classes_of_tfds_are_the_catalogs(name, tmp_path):
    """TFDS's own lists of labels: every class finds one of CLIP's, and each only one."""
    import tensorflow_datasets as tfds

    entry = CLASSIFICATION[name]
    full = "/".join(part for part in (entry.tfds.name, entry.tfds.config) if part)
    info = tfds.builder(full, data_dir=tmp_path).info
    major = entry.tfds.version.partition(".")[0]
    assert str(info.version).partition(".")[0] == major
    found = match_classes(entry, info.features[entry.tfds.label].names, prompts_of(name))
    assert sorted(found) == list(range(CLASSES[name]))


def test_names_that_differ():
    titles = prompts_of("eurosat").titles
    found = match_classes(
        CLASSIFICATION["eurosat"], ["SeaLake", "AnnualCrop"], prompts_of("eurosat")
    )
    assert [titles[i] for i in found] == ["lake or sea", "annual crop land"]
    less = prompts_of("caltech101", ["background"])
    assert match_classes(CLASSIFICATION["caltech101"], ["background_google", "faces"], less) == (
        None,
        0,
    )
    with pytest.raises(DatasetError, match="Pets has no class 'hamster'"):
        match_classes(CLASSIFICATION["pets"], ["hamster", "pug"], prompts_of("pets"))
    with pytest.raises(DatasetError, match="GTSRB has 43 classes"):
        match_classes(CLASSIFICATION["gtsrb"], ["00000"], prompts_of("gtsrb"))
    assert prompts_of("fer2013").classes[3] == ("happy", "smiling")


def test_permutation_is_torchs():
    # torch.randperm(n, generator=torch.Generator().manual_seed(3072)), torch 2.14.1
    assert torch_permutation(8, 3072).tolist() == [7, 5, 6, 4, 1, 3, 2, 0]
    whole = torch_permutation(8677, 3072)
    assert whole[:5].tolist() == [8207, 8500, 5854, 3947, 6357]
    assert whole[-3:].tolist() == [6927, 4788, 6320]
    assert sorted(whole.tolist()) == list(range(8677))


def test_drawn_parts_are_apart_and_do_not_depend_on_order():
    keys = [f"picture_{i}" for i in range(60)]
    classes = np.arange(60) % 3
    train = drawn(Draw(5, each_class=True), "toy", keys, classes)
    test = drawn(Draw(10, skip=5, each_class=True), "toy", keys, classes)
    assert np.bincount(classes[train]).tolist() == [5, 5, 5]
    assert np.bincount(classes[test]).tolist() == [10, 10, 10]
    assert not set(train) & set(test)
    again = drawn(Draw(5, each_class=True), "toy", keys[::-1], classes[::-1])
    assert {keys[::-1][i] for i in again} == {keys[i] for i in train}
    other = drawn(Draw(5, each_class=True), "another", keys, classes)
    assert set(other) != set(train)
    with pytest.raises(DatasetError, match="class 0 of toy has 20 pictures, but its parts need 25"):
        drawn(Draw(20, skip=5, each_class=True), "toy", keys, classes)


def test_derived_classes():
    def kitti(*objects):
        kinds, depths = zip(*objects, strict=True) if objects else ((), ())
        locations = [np.array([0, 0, z], np.float32) for z in depths]
        return kitti_distance({"objects": {"type": list(kinds), "location": locations}})["class"]

    # cars 0, vans 1 and trucks 2 count, pedestrians 3 do not
    assert kitti((0, 30.0), (2, 7.9), (3, 1.0)) == 0
    assert kitti((1, 8.5)) == 1
    assert kitti((0, 20.5)) == 2
    assert kitti((3, 2.0)) == kitti() == 3

    titles = prompts_of("clevr_counts").titles
    for count in (3, 10):
        found = clevr_counts({"objects": {"color": [0] * count}})["class"]
        assert titles[found] == str(count)

    voc = voc_classes(
        {"objects": {"label": [0, 10, 10, 2], "is_difficult": [False, True, False, True]}}
    )
    assert voc["class/aeroplane"] == 1
    assert voc["class/diningtable"] == 1  # one of two is not difficult
    assert voc["class/bird"] == -1
    assert voc["class/person"] == 0
    assert len(voc) == 20


def test_layouts(tmp_path):
    """Archives as they come."""
    aircraft = tmp_path / "aircraft" / "data"
    for part, variant in (("train", "707-320"), ("val", "A300B4"), ("test", "707-320")):
        put(aircraft / "images" / f"{part}.jpg")
        (aircraft / f"images_variant_{part}.txt").write_text(f"{part} {variant}\n")
    entry = CLASSIFICATION["aircraft"]
    train = open_part(entry, "train", "clip", str(tmp_path))
    validation = open_validation(entry, "clip", str(tmp_path))
    titles = train.class_names["class"]
    assert titles[train.describe(0)["labels"]["class"]] == "707-320"
    assert titles[validation.describe(0)["labels"]["class"]] == "A300B4"
    assert open_validation(CLASSIFICATION["pets"], "clip", str(tmp_path)) is None
    assert train[0]["image"] == PNG
    assert len(open_part(entry, "test", "clip", str(tmp_path))) == 1

    memes = tmp_path / "hateful_memes"
    for i in range(3):
        put(memes / "img" / f"{i}.png")
    rows = [{"img": f"img/{i}.png", "label": i % 2, "text": "x"} for i in range(3)]
    (memes / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    (memes / "dev_seen.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    test = open_part(CLASSIFICATION["hateful_memes"], "test", "clip", str(tmp_path))
    assert [test.describe(i)["labels"]["class"] for i in range(3)] == [0, 1, 0]

    voc = tmp_path / "voc2007"
    put(voc / "a.png")
    put(voc / "b.png")
    (voc / "labels.csv").write_text("file,split,class\na.png,train,dog|person\nb.png,test,person\n")
    labels = open_part(CLASSIFICATION["voc2007"], "train", "clip", str(tmp_path)).describe(0)[
        "labels"
    ]
    assert {name for name, there in labels.items() if there} == {"class/dog", "class/person"}
    assert len(labels) == 20

    signs = tmp_path / "gtsrb"
    for i in range(43):
        put(signs / "Training" / f"{i:05d}" / "1.ppm")
    put(signs / "Final_Test" / "Images" / "00000.ppm")
    (signs / "GT-final_test.csv").write_text("Filename;Width;ClassId\n00000.ppm;9;14\n")
    sign = open_part(CLASSIFICATION["gtsrb"], "test", "clip", str(tmp_path))
    assert sign.class_names["class"][sign.describe(0)["labels"]["class"]] == "stop"


def test_lists_that_are_wrong(tmp_path):
    (tmp_path / "pets").mkdir()
    table = tmp_path / "pets" / "labels.csv"
    for text, message in (
        ("file,label\n", "must have the columns file, split and class"),
        ("file,split,class\na.png,exam,pug\n", "'exam' is none of the splits"),
        ("file,split,class\n../a.png,test,pug\n", "lies outside the folder"),
        ("file,split,class\na.png,train,pug\n", "no pictures of the split validation"),
    ):
        table.write_text(text)
        with pytest.raises(DatasetError, match=message):
            open_part(CLASSIFICATION["pets"], "test", "clip", str(tmp_path))
    coco = tmp_path / "coco" / "dataset_coco.json"
    coco.parent.mkdir()
    for text, message in (
        ("[]", "none of Karpathy's caption files"),
        ('{"images": []}', "no picture of the split 'test'"),
        (
            json.dumps(
                {"images": [{"filename": "/etc/x", "split": "test", "sentences": [{"raw": "a"}]}]}
            ),
            "lies outside",
        ),
        (
            json.dumps(
                {"images": [{"filename": "x.jpg", "split": "test", "sentences": [{"raw": "a"}]}]}
            ),
            "unpack the pictures there",
        ),
    ):
        coco.write_text(text)
        with pytest.raises(DatasetError, match=message):
            open_captions(RETRIEVAL["coco"], "clip", str(tmp_path))


def test_what_is_missing_says_how_to_get_it(tmp_path):
    for name, entry in CLASSIFICATION.items():
        with pytest.raises(MissingSetError, match=r"https?://|tfds\.builder") as missing:
            open_part(entry, "test", "clip", str(tmp_path))
        assert entry.title in str(missing.value), name
        assert "\n" not in str(missing.value)
    with pytest.raises(MissingSetError, match="sun397/tfds"):
        open_part(CLASSIFICATION["sun397"], "test", "deepglint", str(tmp_path))
    for entry in RETRIEVAL.values():
        with pytest.raises(MissingSetError, match="caption_datasets"):
            open_captions(entry, "clip", str(tmp_path))
