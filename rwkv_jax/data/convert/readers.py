"""Units to raw samples. A reader may meet anything: it gives what it can, and counts the rest.

Nothing is ever extracted: a tar's members are read in memory, and their names only become keys.
"""

import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from rwkv_jax.data.convert.options import Options, Raw, Rejected, Unit
from rwkv_jax.data.convert.texts import KEY_FIELDS, clean_key, json_object

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
# Columns that may hold pictures, or paths of them.
IMAGE_FIELDS = (
    *("image", "images", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "img", "picture"),
    *("file", "file_name", "filename", "path", "image_path", "filepath"),
)
_ENCODED_TEXT = ("txt", "text", "caption", "cls")

DAMAGED = "damaged archives"
UNSAFE = "archive members with an unsafe name"
NO_FILE = "archive members that are no files"


def read_tar(unit: Unit, options: Options, notes: Counter[str]) -> Iterator[Raw]:
    """Webdataset's convention: members of one sample stand together and share the name up to the
    first dot; what is behind it says what a member is.
    """
    current: Raw | None = None
    name = None
    try:
        # As a stream: a hostile header cannot send the reader back and forth.
        with tarfile.open(unit.path, "r|*", errorlevel=0) as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if member.isdir():
                    continue
                if path.is_absolute() or ".." in path.parts or "\0" in member.name:
                    notes[UNSAFE] += 1
                    continue
                if not member.isreg():
                    notes[NO_FILE] += 1
                    continue
                stem, _, suffix = path.name.partition(".")
                base = str(path.with_name(stem)) if stem else path.name
                if base != name:
                    if current is not None:
                        yield current
                    name, current = base, Raw(clean_key(base), {})
                assert current is not None
                _add_member(current, suffix.lower(), archive, member, options)
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps all
        _check_end(Path(unit.path))
    # A damaged or hostile archive raises many kinds, RecursionError and OverflowError among them.
    except Exception as error:
        notes[DAMAGED] += 1
        notes[f"{DAMAGED}: {PurePosixPath(unit.path).name}: {_short(error)}"] += 1
        if current is not None and current.image is None:
            current.problem = Rejected("broken sample", f"the archive ends within it: {error}")
    if current is not None:
        yield current


def _check_end(path: Path) -> None:
    """Raises ReadError for a tar that was cut off between two members: tarfile passes over it."""
    with open(path, "rb") as file:
        compressed = file.read(262)[257:] != b"ustar"  # a cut in those is an error by itself
        file.seek(-min(tarfile.BLOCKSIZE, path.stat().st_size), 2)
        if not compressed and file.read().strip(b"\0"):
            raise tarfile.ReadError("no end mark")


def _add_member(
    sample: Raw, suffix: str, archive: tarfile.TarFile, member: tarfile.TarInfo, options: Options
) -> None:
    is_image = suffix.rpartition(".")[2] in IMAGE_SUFFIXES
    if suffix != "json" and not is_image and suffix not in _wanted(options):
        return
    if member.size > options.max_bytes:
        if is_image:
            sample.problem = Rejected(
                "file too large", f"{member.size} bytes, more than {options.max_bytes}"
            )
        return
    file: IO[bytes] | None = archive.extractfile(member)  # opens it, and writes nothing
    data = file.read() if file is not None else b""
    if len(data) != member.size:
        raise tarfile.ReadError(f"{member.name} is cut off")
    if is_image and sample.image is None:
        sample.image = data
    elif suffix == "json":
        found = json_object(data)
        if isinstance(found, dict):
            sample.fields = found | sample.fields
            if isinstance(found.get(options.key), str | int):
                sample.key = clean_key(found[options.key])
    elif not is_image:
        sample.fields[suffix] = data


def _wanted(options: Options) -> set[str]:
    named = {name for names in options.texts.values() for name in names}
    return {*_ENCODED_TEXT, *named, *options.labels.values()}


def read_parquet(unit: Unit, options: Options, notes: Counter[str]) -> Iterator[Raw]:
    """Row groups `start` to `stop` of a file."""
    import pyarrow.parquet

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(unit.path) as file:
            columns = parquet_columns(file.schema_arrow.names, options)
            groups = range(unit.start, unit.stop)
            for batch in file.iter_batches(64, row_groups=list(groups), columns=columns):
                for fields in batch.to_pylist():
                    name = f"{Path(unit.path).stem}-{unit.start}-{row}"
                    yield _from_row(fields, name, Path(unit.path).parent, options)
                    row += 1
    except Exception as error:  # pyarrow raises ArrowInvalid, OSError, and more.
        notes[DAMAGED] += 1
        notes[f"{DAMAGED}: {Path(unit.path).name}: {_short(error)}"] += 1


def parquet_columns(names: list[str], options: Options) -> list[str] | None:
    """The columns to read; None for all, where the command does not say which hold texts, or none
    of those is there: what is said then names the columns that are.
    """
    wanted = {name for found in options.texts.values() for name in found}
    if not wanted.intersection(names):
        return None
    wanted |= {*options.labels.values(), options.image, options.key, *IMAGE_FIELDS, *KEY_FIELDS}
    return [name for name in names if name in wanted]


def read_rows(unit: Unit, options: Options, notes: Counter[str]) -> Iterator[Raw]:
    """Lines of a piece that `plan` cut out of a table or a folder's list, which is `origin`."""
    del notes
    with open(unit.path, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            found = json_object(line)
            row: dict[str, Any] = found if isinstance(found, dict) else {"problem": found}
            key = f"{Path(unit.origin).stem}-{row.get('line', 0)}"
            if "problem" in row:
                yield Raw(clean_key(key), {}, problem=Rejected("broken row", str(row["problem"])))
            elif "picture" in row:
                yield _picture_file(Path(row["picture"]), Path(unit.origin))
            else:
                yield _from_row(row["fields"], key, Path(unit.origin).parent, options)


def _picture_file(path: Path, folder: Path) -> Raw:
    """A folder's picture, with the .txt and .json of the same name; `folder` is a field too."""
    fields: dict[str, Any] = {"folder": path.parent.name, "name": path.stem}
    if path.with_suffix(".json").is_file():
        found = json_object(path.with_suffix(".json").read_bytes())
        fields |= found if isinstance(found, dict) else {}
    if path.with_suffix(".txt").is_file():
        fields["txt"] = path.with_suffix(".txt").read_bytes()
    return Raw(clean_key(path.relative_to(folder).as_posix()), fields, str(path))


def _from_row(fields: dict[str, Any], name: str, folder: Path, options: Options) -> Raw:
    key_field = options.key or next((f for f in KEY_FIELDS if fields.get(f) is not None), "")
    key = clean_key(fields.get(key_field) if fields.get(key_field) is not None else name)
    image_field = options.image or next((f for f in IMAGE_FIELDS if fields.get(f)), "")
    image = fields.get(image_field)
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if isinstance(image, dict):  # of Hugging Face's datasets: {"bytes", "path"}
        image = image.get("bytes") or image.get("path")
    fields = {n: v for n, v in fields.items() if n != image_field}
    if isinstance(image, bytes) or not image:
        return Raw(key, fields, image or None)
    try:
        return Raw(key, fields, _inside(str(image), folder, options))
    except Rejected as problem:
        return Raw(key, fields, problem=problem)


def _inside(path: str, folder: Path, options: Options) -> str:
    """The path, once it is known not to lead out of the folder of pictures."""
    root = os.path.realpath(options.image_root or folder)
    if "\0" in path:
        raise Rejected("unsafe path", repr(path[:80]))
    full = os.path.realpath(os.path.join(root, path))
    if os.path.commonpath([root, full]) != root:
        raise Rejected("unsafe path", f"{path!r} is outside of {root} (see --image-root)")
    return full


def read_catalog(unit: Unit, options: Options, notes: Counter[str]) -> Iterator[Raw]:
    """Records `start` to `stop` of a dataset that the loader knows."""
    from rwkv_jax.data.catalog import open_dataset

    source = open_dataset(unit.path, options.split, options.data_dir)
    for index in range(unit.start, unit.stop):
        try:
            record = source[index]
        except OSError as error:
            key = clean_key(f"{source.name}[{index}]")
            yield Raw(key, {}, problem=Rejected("unreadable record", str(error)))
            continue
        labels = {
            label: source.class_names[label][value]
            for label, value in record["labels"].items()
            if value >= 0 and label in source.class_names
        }
        yield Raw(clean_key(record["key"]), {**labels, **record["texts"]}, record["image"])


READERS: dict[str, Callable[[Unit, Options, Counter[str]], Iterator[Raw]]] = {
    "tar": read_tar,
    "parquet": read_parquet,
    "rows": read_rows,
    "catalog": read_catalog,
}


def _short(error: Exception) -> str:
    # Addresses and offsets would make two runs differ.
    text = re.sub(r"0x[0-9a-f]+", "", (str(error).splitlines() or [""])[0])[:120]
    return f"{type(error).__name__} {text}".strip()
