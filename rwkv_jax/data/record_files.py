"""Records in ArrayRecord files: `records:DIR`, what `python -m rwkv_jax.data.convert` writes.

    DIR/train.manifest.json        what is in it: shards, kinds of text, classes, counts, hashes
    DIR/train-00000.arrayrecord    one record an entry

A record is a msgpack map: {"key": str, "image": bytes, "texts": {kind: [str, ...]}, "labels":
{label: class name}}. Msgpack holds plain values only, so reading a file that someone else made
runs nothing, and it parses in microseconds, where TFDS's tf.train.Example takes longer than a small
picture. Classes stand as names: shards are written without knowing each other's.

array_record opens local files only. Of a remote DIR (gs://, s3://, anything that fsspec opens with
its package installed: gcsfs, s3fs) each shard is copied once, when a record of it is first read,
into `data_dir/cache`; a shuffled epoch copies them all.
"""

import bisect
import contextlib
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack

from rwkv_jax.data.records import DatasetError, Record

SCHEMA_VERSION = 1
# One record a group, so that reading one decodes one; pictures are compressed already.
WRITER_OPTIONS = "group_size:1,uncompressed"
_MAX_OPEN_SHARDS = 512
# What is read of a manifest and of its shards; the rest is for people and for `convert`.
_MANIFEST = {"text_kinds": list, "class_names": dict, "content_hash": str, "shards": list}
_SHARD = {"file": str, "records": int, "content_hash": str}
_AGAIN = "delete the manifest and convert the dataset again"


def encode_record(
    key: str, image: bytes, texts: Mapping[str, tuple[str, ...]], labels: Mapping[str, str]
) -> bytes:
    """The bytes of one entry; the same record always gives the same bytes."""
    entry = {
        "key": key,
        "image": image,
        "texts": {kind: list(texts[kind]) for kind in sorted(texts)},
        "labels": {label: labels[label] for label in sorted(labels)},
    }
    return msgpack.packb(entry, use_bin_type=True)


def decode_record(entry: bytes) -> dict[str, Any]:
    """The inverse of `encode_record`.

    Raises:
        ValueError: the entry is not such a map.
    """
    try:
        record = msgpack.unpackb(entry, raw=False)
    except Exception as error:  # msgpack has many kinds, some without a common base
        raise ValueError(f"an entry is no record ({type(error).__name__}: {error})") from error
    expected = {"key": str, "image": bytes, "texts": dict, "labels": dict}
    if not isinstance(record, dict) or any(
        not isinstance(record.get(name), kind) for name, kind in expected.items()
    ):
        raise ValueError(f"an entry is no record: it must hold {', '.join(expected)}")
    return record


def manifest_name(split: str) -> str:
    return f"{split}.manifest.json"


class RecordFilesSource:
    """One split of a folder of ArrayRecord files. See `Source`."""

    def __init__(self, path: str, split: str, data_dir: str):
        """Args:
          path: the folder, local or a URL.
          split: which `SPLIT.manifest.json`.
          data_dir: remote shards are kept in its `cache`.

        Raises:
          DatasetError: no such folder or split, or files are missing or of another schema.
        """
        self._arguments = (path, split, data_dir)
        self._path = path.rstrip("/")
        self._cache = Path(data_dir) / "cache"
        self._remote = "://" in path
        self.name = f"records:{path}/{split}"
        manifest = self._read_manifest(split)
        self.text_kinds = tuple(manifest["text_kinds"])
        self.class_names = {label: tuple(names) for label, names in manifest["class_names"].items()}
        self.content_hash = manifest["content_hash"]
        self._shards = manifest["shards"]
        self._ends = list(itertools.accumulate(shard["records"] for shard in self._shards))
        self._indices = {
            label: {name: i for i, name in enumerate(names)}
            for label, names in self.class_names.items()
        }
        if not self._remote:
            for shard in self._shards:
                if not (Path(self._path) / shard["file"]).is_file():
                    raise DatasetError(
                        f"{self.name} names {shard['file']}, which is not there: convert again"
                    )
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of the {len(self)} of {self.name}")
        shard = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[shard - 1] if shard else 0)
        try:
            record = decode_record(self._reader(shard)[row])
        # array_record raises RuntimeError, ValueError or IndexError for broken files.
        except (ValueError, RuntimeError, IndexError) as error:
            where = f"{self.name}, {self._shards[shard]['file']}[{row}]"
            raise OSError(f"{where}: {str(error).splitlines()[0]}") from error
        return Record(
            key=record["key"],
            image=record["image"],
            texts={kind: tuple(texts) for kind, texts in record["texts"].items()},
            labels={
                label: indices.get(record["labels"].get(label, ""), -1)
                for label, indices in self._indices.items()
            },
        )

    # Open readers cannot be pickled; a worker process opens its own.
    def __reduce__(self) -> tuple:
        return (type(self), self._arguments)

    def _reader(self, shard: int) -> Any:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        reader = self._readers.get(shard)
        if reader is None:
            with self._lock:
                while len(self._readers) >= _MAX_OPEN_SHARDS:
                    # Not closed: another thread may be reading; it goes with its last user.
                    self._readers.pop(next(iter(self._readers)))
                reader = self._readers.get(shard)
                if reader is None:
                    reader = ArrayRecordDataSource(str(self._local(shard)))
                    self._readers[shard] = reader
        return reader

    def _read_manifest(self, split: str) -> dict[str, Any]:
        import fsspec

        url = f"{self._path}/{manifest_name(split)}"
        try:
            with fsspec.open(url, "rb") as file:
                text = file.read()
        except FileNotFoundError:
            raise DatasetError(
                f"{self._path} has no split {split!r}: there is no {url}. It is written by"
                f" `python -m rwkv_jax.data.convert SOURCE --out {self._path} --split {split}`."
            ) from None
        except ImportError as error:
            raise DatasetError(f"{url} cannot be opened: {error}") from error
        except (OSError, ValueError) as error:
            raise DatasetError(f"{url} cannot be read: {error}") from error
        try:
            manifest = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{url} is damaged ({error}): {_AGAIN}") from error
        # The version first: another one may have other fields.
        _check_fields(manifest, {}, url)
        if manifest.get("schema") != SCHEMA_VERSION:
            raise DatasetError(
                f"{self.name} is of schema {manifest.get('schema')!r}, this version reads"
                f" {SCHEMA_VERSION}: convert the dataset again"
            )
        _check_fields(manifest, _MANIFEST, url)
        for number, shard in enumerate(manifest["shards"]):
            _check_fields(shard, _SHARD, f"{url}, shard {number},")
        return manifest

    def _local(self, shard: int) -> Path:
        """The shard's file on this machine."""
        entry = self._shards[shard]
        if not self._remote:
            return Path(self._path) / entry["file"]
        # By content: a dataset that was made anew is another file.
        folder = self._cache / hashlib.sha256(self._path.encode()).hexdigest()[:16]
        kept = folder / f"{entry['content_hash']}.arrayrecord"
        if not kept.exists():
            import fsspec

            folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=folder, prefix=".partial-")
            try:
                with (
                    os.fdopen(handle, "wb") as here,
                    fsspec.open(f"{self._path}/{entry['file']}", "rb") as there,
                ):
                    shutil.copyfileobj(there, here, 2**20)
                os.replace(temporary, kept)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)
        return kept


def _check_fields(found: Any, expected: Mapping[str, type], where: str) -> None:
    """Raises DatasetError."""
    if not isinstance(found, dict):
        raise DatasetError(f"{where} is damaged: it is {found!r:.80} and no object; {_AGAIN}")
    for name, kind in expected.items():
        if not isinstance(found.get(name), kind):
            raise DatasetError(
                f"{where} is damaged: its {name!r} is {found.get(name)!r:.80} and no"
                f" {kind.__name__}; {_AGAIN}"
            )
