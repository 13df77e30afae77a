"""Opens a part of a set where it lies on disk, or says how to get the set.

A set lies in DATA_DIR as TFDS prepared it, or as the folder DATA_DIR/NAME: in the layout of its
archive (layouts.py), as {train,validation,test}/CLASS/PICTURE, or with a labels.csv of the columns
file, split and class. A folder has its own splits: no part is drawn. Where it has no test pictures,
its validation pictures are judged.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Int

from rwkv_jax.data.records import DatasetError, Record, Source
from rwkv_jax.data.tfds_source import PREPARE, TfdsSource
from rwkv_jax.evaluation.catalog.classes import Prompts, match_classes, prompts_of
from rwkv_jax.evaluation.catalog.derived import DERIVED
from rwkv_jax.evaluation.catalog.draw import drawn
from rwkv_jax.evaluation.catalog.entry import (
    ClassificationSet,
    Mode,
    Part,
    Pick,
    RetrievalSet,
    Tfds,
)
from rwkv_jax.evaluation.catalog.karpathy import KarpathySource
from rwkv_jax.evaluation.catalog.labelled_folder import LABEL, LabelledFolder
from rwkv_jax.evaluation.catalog.layouts import Row, read_rows
from rwkv_jax.evaluation.catalog.selection import Joined, Relabelled, Selection
from rwkv_jax.evaluation.progress import progress


class MissingSetError(DatasetError):
    """A set is not on disk; the message says how to get it."""


def open_part(entry: ClassificationSet, part: Part, mode: Mode, data_dir: str) -> Selection:
    """One part of a classification set, with CLIP's class names.

    Raises:
      MissingSetError: it is not on disk.
      DatasetError: it is, but not as it should be.
    """
    pick = entry.parts_of(mode).pick(part)
    prompts = prompts_of(entry.name, pick.without)
    if entry.tfds and _prepared(entry.tfds, pick, data_dir):
        return _from_tfds(entry, entry.tfds, pick, prompts, data_dir)
    root = Path(data_dir) / entry.name
    rows = read_rows(root, entry.layout) if root.is_dir() else []
    if not rows:
        raise MissingSetError(how_to_get(entry, pick, data_dir))
    return _from_folder(entry, part, root, rows, prompts)


def open_validation(entry: ClassificationSet, mode: Mode, data_dir: str) -> Selection | None:
    """The part that a probe chooses its penalty on; None where the set has none.

    Raises:
      DatasetError: it is not as it should be.
    """
    parts = entry.parts_of(mode)
    if entry.tfds and _prepared(entry.tfds, parts.train, data_dir):
        return open_part(entry, "validation", mode, data_dir) if parts.validation else None
    root = Path(data_dir) / entry.name
    rows = read_rows(root, entry.layout) if root.is_dir() else []
    if {"validation", "test"} <= {row.split for row in rows}:
        prompts = prompts_of(entry.name, parts.test.without)
        return _from_folder(entry, "validation", root, rows, prompts)
    return None


def open_captions(entry: RetrievalSet, mode: Mode, data_dir: str) -> KarpathySource:
    """The test part of a retrieval set.

    Raises:
      MissingSetError: it is not on disk.
      DatasetError: it is, but not as it should be.
    """
    path = Path(data_dir) / entry.name / entry.karpathy
    if not path.is_file():
        raise MissingSetError(
            f"{entry.title} is not in {data_dir}: unpack {entry.get} so that {path} lies beside"
            " the folder of the pictures"
        )
    return KarpathySource(path, "test", entry.captions[mode])


def how_to_get(entry: ClassificationSet, pick: Pick, data_dir: str) -> str:
    """One sentence with the command or the page."""
    folder = Path(data_dir) / entry.name
    if entry.tfds is None:
        return (
            f"{entry.title} is not in {data_dir}: unpack {entry.get} as {folder}, or sort its"
            f" pictures into {folder}/{{train,validation,test}}/CLASS/"
        )
    config = pick.config or entry.tfds.config
    name = entry.tfds.name + (f"/{config}" if config else "")
    by_hand = (
        f" (first download {entry.tfds.manual} into {data_dir}/downloads/manual)"
        if entry.tfds.manual
        else ""
    )
    return (
        f"{entry.title} is not in {data_dir}: in an environment of its own,"
        f" {PREPARE.format(name=name, data_dir=data_dir)}{by_hand}; or sort its pictures into"
        f" {folder}/{{train,validation,test}}/CLASS/"
    )


def _prepared(tfds: Tfds, pick: Pick, data_dir: str) -> bool:
    """Whether TFDS has prepared the dataset at all; TfdsSource judges how."""
    config = pick.config or tfds.config
    folder = Path(data_dir, tfds.name, *([config] if config else []))
    return any(folder.glob("*/dataset_info.json"))


def _from_tfds(
    entry: ClassificationSet, tfds: Tfds, pick: Pick, prompts: Prompts, data_dir: str
) -> Selection:
    name = tfds.full_name(pick.config)
    views = [
        _tfds_view(entry, tfds, TfdsSource(name, split, data_dir), prompts)
        for split in pick.of.split("+")
    ]
    source = Joined(views)
    if not (pick.draw or pick.without):
        return _selection(entry, source, np.arange(len(source)), pick.describe())
    numbers = progress(range(len(source)), len(source), f"reading {source.name}")
    records = [source.describe(i) for i in numbers]
    classes = np.array([record["labels"][LABEL] for record in records])
    index = np.flatnonzero(classes >= 0)
    if pick.draw:
        keys = [records[i]["key"] for i in index]
        index = index[drawn(pick.draw, entry.name, keys, classes[index])]
    return _selection(entry, source, index, pick.describe())


def _tfds_view(
    entry: ClassificationSet, tfds: Tfds, source: TfdsSource, prompts: Prompts
) -> Relabelled:
    """The source with the label "class", by CLIP's order."""
    names = {LABEL: prompts.titles}
    if tfds.derive:
        derive = DERIVED[tfds.derive]

        def derived(record: Record, index: int) -> Record:
            return {**record, "texts": {}, "labels": derive(source.example(index))}

        return Relabelled(source, derived, names)
    place = _places(entry, source.class_names, tfds.label, prompts)

    def change(record: Record, index: int) -> Record:
        own = place(record["labels"].get(tfds.label, -1))
        key = record["key"]
        if tfds.key:  # file names of Caltech-101 are unique within a class alone
            folder = prompts.dataset_names[own] if own >= 0 else "left out"
            key = f"{folder}/{record['texts'][tfds.key][0]}"
        return {**record, "key": key, "texts": {}, "labels": {LABEL: own}}

    return Relabelled(source, change, names)


def _from_folder(
    entry: ClassificationSet, part: Part, root: Path, rows: list[Row], prompts: Prompts
) -> Selection:
    has_test = any(row.split == "test" for row in rows)
    split = "validation" if part == "test" and not has_test else part
    several = entry.metric == "map_11"
    source = LabelledFolder(root, rows, split, several=several)
    words = f"the folder's own {split}"
    names = {LABEL: prompts.titles}
    if several:
        own_names = source.class_names[LABEL]
        places = match_classes(entry, own_names, prompts)
        field = {place: f"{LABEL}/{name}" for place, name in zip(places, own_names, strict=True)}

        def change(record: Record, index: int) -> Record:
            labels = {
                f"{LABEL}/{title}": record["labels"].get(field.get(i, ""), 0)
                for i, title in enumerate(prompts.titles)
            }
            return {**record, "labels": labels}

        view = Relabelled(source, change, names)
        return _selection(entry, view, np.arange(len(view)), words)
    place = _places(entry, source.class_names, LABEL, prompts)
    view = Relabelled(
        source,
        lambda record, _: {**record, "labels": {LABEL: place(record["labels"][LABEL])}},
        names,
    )
    classes = np.array([view.describe(i)["labels"][LABEL] for i in range(len(view))])
    return _selection(entry, view, np.flatnonzero(classes >= 0), words)


def _places(
    entry: ClassificationSet,
    class_names: dict[str, tuple[str, ...]],
    label: str,
    prompts: Prompts,
) -> Callable[[int], int]:
    """From a class of the data to its place among CLIP's; -1 for one that is left out."""
    if label not in class_names:
        raise DatasetError(
            f"{entry.title} as prepared has no label {label!r}, only {sorted(class_names)}"
        )
    found = [-1 if i is None else i for i in match_classes(entry, class_names[label], prompts)]
    return lambda own: found[own] if own >= 0 else -1


def _selection(
    entry: ClassificationSet, source: Source, index: Int[np.ndarray, " n"], words: str
) -> Selection:
    return Selection(source, index, name=f"{entry.name} ({source.name})", split=words)
