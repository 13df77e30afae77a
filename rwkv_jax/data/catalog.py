"""Named datasets: `open_dataset("open_emoji", "train", "data")` gives the records of a split.

A name is one of `DATASETS`, or begins with a prefix of `FAMILIES`, followed by which member it is.
"""

from collections.abc import Callable, Sequence

from rwkv_jax.data.config import MixturePart
from rwkv_jax.data.mixture import MixtureSource
from rwkv_jax.data.records import DatasetError, Source


def _open_emoji(name: str, split: str, data_dir: str) -> Source:
    from rwkv_jax.data.open_emoji import dataset

    return dataset.open_split(split, data_dir)


def _tfds(name: str, split: str, data_dir: str) -> Source:
    from rwkv_jax.data.tfds_source import TfdsSource

    return TfdsSource(name.removeprefix("tfds:"), split, data_dir)


def _records(name: str, split: str, data_dir: str) -> Source:
    from rwkv_jax.data.record_files import RecordFilesSource

    return RecordFilesSource(name.removeprefix("records:"), split, data_dir)


def _folder(name: str, split: str, data_dir: str) -> Source:
    from rwkv_jax.data.folder import FolderSource

    return FolderSource(name.removeprefix("folder:"), split)


Opener = Callable[[str, str, str], Source]
DATASETS: dict[str, Opener] = {"open_emoji": _open_emoji}
FAMILIES: dict[str, tuple[Opener, str]] = {
    "records:": (
        _records,
        "records:DIR, a folder or URL that `python -m rwkv_jax.data.convert` wrote",
    ),
    "tfds:": (_tfds, "tfds:NAME[/CONFIG][:VERSION], any TFDS dataset prepared as array_record"),
    "folder:": (_folder, "folder:PATH, a folder with pictures and one table of their texts"),
}


def open_dataset(name: str, split: str, data_dir: str) -> Source:
    """Opens one split of a dataset.

    Args:
      name: "open_emoji", "records:DIR", "tfds:NAME[/CONFIG][:VERSION]" or "folder:PATH".
      split: the split's name.
      data_dir: where prepared datasets lie; "folder:" and a local "records:" do not use it.

    Raises:
      DatasetError: the name or the split is unknown (the message lists those that exist), the
        dataset is not prepared (it gives the command that prepares it), or its files are not as
        they should be.
    """
    if name in DATASETS:
        return DATASETS[name](name, split, data_dir)
    for prefix, (opener, _) in FAMILIES.items():
        if name.startswith(prefix) and len(name) > len(prefix):
            return opener(name, split, data_dir)
    known = "; ".join([*DATASETS, *(description for _, description in FAMILIES.values())])
    raise DatasetError(f"There is no dataset {name!r}. Known are: {known}.")


def open_mixture(parts: Sequence[MixturePart], data_dir: str) -> MixtureSource:
    """Opens every dataset of a mixture.

    Raises:
      DatasetError: as `open_dataset`.
    """
    sources = [open_dataset(part.dataset, part.split, data_dir) for part in parts]
    return MixtureSource(sources, [part.weight for part in parts])
