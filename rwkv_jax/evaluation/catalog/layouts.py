"""Folders as they are when unpacked, read into rows: which picture, which split, which classes.

Any set may lie as `class_folders`; some have a layout of their own as well, for their archives as
they come.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from rwkv_jax.data.records import DatasetError

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"})
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
TABLE = "labels.csv"


class Row(NamedTuple):
    """A picture, its path below the folder, its split and its class; several are joined by "|"."""

    file: str
    split: str
    classes: str


def class_folders(root: Path) -> Iterator[Row]:
    """SPLIT/CLASS/.../PICTURE, or labels.csv with the columns file, split, class."""
    if (root / TABLE).is_file():
        yield from _table(root / TABLE)
        return
    for folder in _folders(root):
        split = SPLIT_NAMES.get(folder.name.lower())
        if split is None:
            continue
        for of_class in _folders(folder):
            for file in sorted(of_class.rglob("*")):
                if file.suffix.lower() in PICTURE_SUFFIXES:
                    yield Row(file.relative_to(root).as_posix(), split, of_class.name)


def _folders(root: Path) -> list[Path]:
    return sorted(each for each in root.iterdir() if each.is_dir())


def _table(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        wanted = {"file", "split", "class"}
        if not wanted <= set(reader.fieldnames or ()):
            raise DatasetError(f"{path} must have the columns file, split and class.")
        for row in reader:
            split = SPLIT_NAMES.get(row["split"].strip().lower())
            if split is None or row["class"] is None:
                raise DatasetError(
                    f"{path}, line {reader.line_num}: {row['split']!r} is none of the splits"
                    f" {', '.join(sorted(set(SPLIT_NAMES.values())))}, or the class is missing."
                )
            yield Row(row["file"].strip(), split, row["class"].strip())


def aircraft(root: Path) -> Iterator[Row]:
    """fgvc-aircraft-2013b/data: images/ID.jpg and images_variant_{train,val,test}.txt."""
    data = next((path for path in (root / "data", root) if (path / "images").is_dir()), None)
    if data is None:
        return
    for part in ("train", "val", "test"):
        table = data / f"images_variant_{part}.txt"
        for line in table.read_text("utf-8").splitlines() if table.is_file() else ():
            picture, _, variant = line.partition(" ")
            file = (data / "images" / f"{picture}.jpg").relative_to(root).as_posix()
            yield Row(file, SPLIT_NAMES[part], variant.strip())


def gtsrb(root: Path) -> Iterator[Row]:
    """GTSRB: Training/00000/*.ppm, Final_Test/Images/*.ppm and a GT-final_test.csv."""
    for of_class in _folders(root / "Training") if (root / "Training").is_dir() else ():
        for file in sorted(of_class.glob("*.ppm")):
            yield Row(file.relative_to(root).as_posix(), "train", of_class.name)
    for table in sorted(
        {*root.glob("GT-final_test.csv"), *root.glob("Final_Test/**/GT-final*.csv")}
    ):
        with table.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines, delimiter=";"):
                picture = f"Final_Test/Images/{row['Filename']}"
                yield Row(picture, "test", f"{int(row['ClassId']):05d}")
        return


def hateful_memes(root: Path) -> Iterator[Row]:
    """img/*.png with train.jsonl and dev_seen.jsonl (dev.jsonl of the first release)."""
    for names, split in ((("train",), "train"), (("dev_seen", "dev"), "validation")):
        path = next((p for n in names if (p := root / f"{n}.jsonl").is_file()), None)
        for line in path.read_text("utf-8").splitlines() if path else ():
            if line.strip():
                row = json.loads(line)
                yield Row(row["img"], split, str(row["label"]))


LAYOUTS: Mapping[str, Callable[[Path], Iterator[Row]]] = MappingProxyType(
    {
        "class_folders": class_folders,
        "aircraft": aircraft,
        "gtsrb": gtsrb,
        "hateful_memes": hateful_memes,
    }
)


def read_rows(root: Path, layout: str) -> list[Row]:
    """The rows of a folder, by the layout or as class folders; [] if it is neither.

    Raises:
      DatasetError: a list in the folder is not as it should be.
    """
    try:
        rows = list(LAYOUTS[layout](root)) or list(class_folders(root))
    except (KeyError, TypeError, ValueError, UnicodeDecodeError, csv.Error) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(
            f"a list in {root} is not as it should be: {type(error).__name__}: {error}"
        ) from error
    for row in rows:
        if Path(row.file).is_absolute() or ".." in Path(row.file).parts:
            raise DatasetError(f"{root}: {row.file!r} lies outside the folder.")
    return rows
