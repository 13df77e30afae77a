"""What a row of the catalog holds.

A mode says whose protocol is followed where the papers differ: "clip" (Radford et al. 2021, table
9) or "deepglint" (the loaders of github.com/deepglint/RWKV-CLIP, commit b5d321b).
"""

import dataclasses
from typing import Literal

Mode = Literal["clip", "deepglint"]
MODES: tuple[Mode, ...] = ("clip", "deepglint")

Part = Literal["train", "validation", "test"]
Metric = Literal["accuracy", "mean_per_class", "map_11", "roc_auc", "top_1_5"]
METRIC_TITLES: dict[Metric, str] = {
    "accuracy": "accuracy",
    "mean_per_class": "mean per class",
    "map_11": "11-point mAP",
    "roc_auc": "ROC AUC",
    "top_1_5": "mean of top-1 and top-5",
}


@dataclasses.dataclass(frozen=True)
class Draw:
    """A part of a split, drawn by no generator but by an order that anyone can compute again.

    Attributes:
      count: pictures that are taken; of each class, if `each_class`.
      skip: those that stand before them in the order and belong to another part.
      each_class: whether each class is ordered by itself.
      order: "hash": by SHA-256 of the set's name and the picture's key; "torch_3072": as
        torch.randperm orders them from seed 3072, which the authors' loaders use.
    """

    count: int
    skip: int = 0
    each_class: bool = False
    order: Literal["hash", "torch_3072"] = "hash"


@dataclasses.dataclass(frozen=True)
class Pick:
    """Which pictures are the train or the test part.

    Attributes:
      of: splits of the TFDS dataset, joined by "+".
      draw: the part of them; None takes all.
      without: classes, by CLIP's names, that are left out, of the pictures and of the choice.
      config: another configuration of the TFDS dataset than the entry's.
    """

    of: str
    draw: Draw | None = None
    without: tuple[str, ...] = ()
    config: str | None = None

    def describe(self) -> str:
        """In words, for results."""
        words = (f"{self.config}: " if self.config else "") + self.of
        if self.draw:
            each = " of each class" if self.draw.each_class else ""
            first, last = self.draw.skip + 1, self.draw.skip + self.draw.count
            order = {"hash": "SHA-256", "torch_3072": "torch.randperm of seed 3072"}
            words += f", places {first} to {last}{each} in the order of {order[self.draw.order]}"
        return words + (f", without {', '.join(self.without)}" if self.without else "")


@dataclasses.dataclass(frozen=True)
class Parts:
    """The part to fit on and the part to judge on, with their sizes in the paper.

    `validation` is what a probe chooses its penalty on, before it is fitted on both; None leaves it
    to hold a share of `train` out.
    """

    train: Pick
    test: Pick
    train_count: int
    test_count: int
    validation: Pick | None = None
    validation_count: int = 0

    def pick(self, part: Part) -> Pick:
        """The pictures of a part, which must exist."""
        found = {"train": self.train, "validation": self.validation, "test": self.test}[part]
        assert found is not None, part
        return found

    def count(self, part: Part) -> int:
        """How many pictures a part has in the paper."""
        counts = {
            "train": self.train_count,
            "validation": self.validation_count,
            "test": self.test_count,
        }
        return counts[part]


@dataclasses.dataclass(frozen=True)
class Tfds:
    """A dataset of TFDS.

    Attributes:
      name: as `tfds build` takes it.
      version: the version that the row was written for, or a pattern of TFDS such as "3.*.*".
      config: a configuration of it.
      label: the feature that holds the class.
      derive: a function of `derived.py` that computes the class instead.
      key: a text feature that names the picture, where TfdsSource does not take it for one.
      manual: what must be downloaded by hand first, and where.
    """

    name: str
    version: str
    config: str | None = None
    label: str = "label"
    derive: str | None = None
    key: str | None = None
    manual: str | None = None

    def full_name(self, config: str | None = None) -> str:
        """NAME[/CONFIG]:VERSION."""
        chosen = config or self.config
        return f"{self.name}{f'/{chosen}' if chosen else ''}:{self.version}"


@dataclasses.dataclass(frozen=True)
class ClassificationSet:
    """One set of pictures with classes.

    Attributes:
      name: also its key in clip_prompts.json, and the folder's name where it is a folder.
      title: as tables call it.
      metric: what its column of the tables holds.
      parts: by mode; "deepglint" is absent where the two agree.
      tfds: where TFDS has a builder that serves.
      layout: a reader of `layouts.py` for the folder.
      get: the page to get it from, where TFDS has no builder.
      match: how the classes on disk find CLIP's: by "name" (letters and digits of it), or by
        "order" where the data numbers its classes or names them in codes.
    """

    name: str
    title: str
    metric: Metric
    parts: dict[Mode, Parts]
    tfds: Tfds | None = None
    layout: str = "class_folders"
    get: str = ""
    match: Literal["name", "order"] = "name"

    def parts_of(self, mode: Mode) -> Parts:
        """The parts in a mode."""
        return self.parts.get(mode, self.parts["clip"])


@dataclasses.dataclass(frozen=True)
class RetrievalSet:
    """One set of pictures with captions.

    Attributes:
      name: the folder's name.
      title: as tables call it.
      karpathy: the file with captions and splits, in the folder.
      count: pictures of its test split.
      captions: how many captions of a picture count, by mode; None takes all.
      get: the page to get it from.
    """

    name: str
    title: str
    karpathy: str
    count: int
    captions: dict[Mode, int | None]
    get: str
