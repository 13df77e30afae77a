"""Any prepared TFDS dataset as records: which feature is what is found from their types.

The picture is the only image feature, or the one named `image`. Every text feature is a kind of
text, every class label a label; a feature inside others is named by the last part of its path where
that is unique, as in {"texts": {"label": ...}}. Pictures are handed over encoded (`SkipDecoding`):
no TensorFlow needed.
"""

import hashlib
import json
from typing import Any

from rwkv_jax.data.records import DatasetError, Record

# Text features that say which example it is, rather than what the picture shows.
KEY_FEATURES = ("key", "id", "file_name", "filename", "image_id", "tfds_id")

# `tfds build` of version 4.9.10 wants apache-beam and mlcroissant as well; this wants neither.
PREPARE = (
    "pip install tensorflow tensorflow-datasets array_record importlib_resources, then python -c"
    ' "import tensorflow_datasets as tfds;'
    " tfds.builder('{name}', data_dir='{data_dir}',"
    " file_format='array_record').download_and_prepare()\""
)


class TfdsSource:
    """One split of a dataset that TFDS has prepared as array_record in `data_dir`. See `Source`."""

    def __init__(self, name: str, split: str, data_dir: str, content_hash: str | None = None):
        """Args:
          name: NAME[/CONFIG][:VERSION], as TFDS has it.
          split: "train", or anything that TFDS slices, like "train[:10%]".
          data_dir: where TFDS keeps prepared datasets.
          content_hash: if the caller knows a better one than that of the dataset's metadata.

        Raises:
          DatasetError: not prepared, no such split, or no (single) picture in an example.
        """
        self._arguments = (name, split, data_dir, content_hash)
        self._builder = _prepared(name, data_dir)
        info = self._builder.info
        self.name = f"{info.full_name}/{split}"
        # TFDS itself would prepare a missing split as an empty one.
        if split.partition("[")[0].partition("+")[0] not in info.splits:
            raise DatasetError(
                f"{name} has no split {split!r}; it has {', '.join(sorted(info.splits))}."
            )
        self._image, self._key, self._texts, self._labels = _find_features(info)
        self.text_kinds = tuple(self._texts)
        self.class_names = {
            label: tuple(feature.names) for label, (_, feature) in self._labels.items()
        }
        self.content_hash = content_hash or _metadata_hash(info, split)
        self._examples = self._open(split)

    def _open(self, split: str) -> Any:
        import tensorflow_datasets as tfds

        decoders: Any = tfds.decode.SkipDecoding()
        for part in reversed(self._image):
            decoders = {part: decoders}
        for name, feature in self._builder.info.features.items():
            if isinstance(feature, tfds.features.Image):
                decoders[name] = tfds.decode.SkipDecoding()  # masks too: nobody looks at them
        try:
            examples = self._builder.as_data_source(split=split, decoders=decoders)
            if len(examples):
                examples[0]  # files are only opened now
        # array_record raises RuntimeError, ValueError or IndexError for broken files.
        except (ValueError, RuntimeError, IndexError, OSError) as error:
            raise DatasetError(
                f"{self.name} in {self._builder.data_path} cannot be read "
                f"({_first_line(error)}). Delete that folder and prepare the dataset again."
            ) from error
        return examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Record:
        return self.record(self.example(index), index)

    def example(self, index: int) -> dict[str, Any]:
        """Every feature of an example, pictures encoded; a record holds a part of them."""
        return self._examples[int(index)]

    def record(self, example: dict[str, Any], index: int) -> Record:
        """The record of what `example(index)` gave."""
        key = _at(example, self._key) if self._key else None
        texts = {kind: _as_texts(_at(example, path)) for kind, path in self._texts.items()}
        return Record(
            key=_decode(key) if key is not None else f"{self.name}#{index}",
            image=bytes(_at(example, self._image)),
            texts={kind: found for kind, found in texts.items() if found},
            labels={label: int(_at(example, path)) for label, (path, _) in self._labels.items()},
        )

    # Open readers cannot be pickled; a worker process opens its own.
    def __reduce__(self) -> tuple:
        return (type(self), self._arguments)


def _prepared(name: str, data_dir: str) -> Any:
    """The builder of a dataset that lies in data_dir; its code need not be known."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.core.read_only_builder.builder_from_files(
            **_parsed(name), data_dir=str(data_dir)
        )
    except (ValueError, AssertionError, tfds.core.DatasetNotFoundError) as error:
        raise DatasetError(
            f"The TFDS dataset {name!r} is not prepared in {data_dir}. Prepare it with "
            f"`{PREPARE.format(name=name, data_dir=data_dir)}`."
        ) from error
    file_format = builder.info.file_format
    if file_format is None or file_format.value != "array_record":
        raise DatasetError(
            f"{name} in {data_dir} is stored as {file_format and file_format.value}, which has no "
            f"random access. Prepare it again with `--file_format array_record`."
        )
    return builder


def _parsed(name: str) -> dict[str, str]:
    """NAME[/CONFIG][:VERSION] in its parts."""
    path, _, version = name.partition(":")
    dataset, _, config = path.partition("/")
    parts = {"name": dataset, "config": config, "version": version}
    return {part: value for part, value in parts.items() if value}


def _find_features(info: Any) -> tuple:
    """Paths to the image, the key, the texts by kind, and the labels (with their features)."""
    import tensorflow_datasets as tfds

    # Sorted: the order in which TFDS reads features back is not fixed.
    leaves = dict(sorted(_leaves(info.features), key=lambda leaf: leaf[0]))
    images = [path for path, leaf in leaves.items() if isinstance(leaf, tfds.features.Image)]
    if ("image",) in images:
        images = [("image",)]  # the others are masks, as in oxford_iiit_pet
    if len(images) != 1:
        found = ", ".join("/".join(path) for path in images) or "none"
        raise DatasetError(
            f"{info.full_name} must have exactly one image feature, but it has {found}."
        )
    texts = [path for path, leaf in leaves.items() if _is_text(leaf)]
    keys = [path for path in texts if path[-1] in KEY_FEATURES]
    labels = {
        path: leaf for path, leaf in leaves.items() if isinstance(leaf, tfds.features.ClassLabel)
    }
    text_paths = _short_names([path for path in texts if path not in keys])
    label_paths = _short_names(list(labels))
    return (
        images[0],
        min(keys, key=lambda path: KEY_FEATURES.index(path[-1])) if keys else None,
        text_paths,
        {name: (path, labels[path]) for name, path in label_paths.items()},
    )


def _leaves(feature: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.FeaturesDict):
        return [leaf for name, inner in feature.items() for leaf in _leaves(inner, (*path, name))]
    return [(path, feature)]


def _is_text(feature: Any) -> bool:
    """Text, or a sequence of text."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Sequence):
        feature = feature.feature
    return isinstance(feature, tfds.features.Text)


def _short_names(paths: list[tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    last = [path[-1] for path in paths]
    return {path[-1] if last.count(path[-1]) == 1 else "/".join(path): path for path in paths}


def _at(example: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        example = example[part]
    return example


def _decode(text: Any) -> str:
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)


def _as_texts(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, bytes | str) else list(value)
    return tuple(text for text in map(_decode, texts) if text)


def _metadata_hash(info: Any, split: str) -> str:
    """Of what TFDS knows about the files: cheap for any size, changes when the data is remade."""
    shards = {name: [part.num_bytes, part.shard_lengths] for name, part in info.splits.items()}
    facts = json.dumps([info.full_name, split, shards], sort_keys=True, default=str)
    return hashlib.sha256(facts.encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
