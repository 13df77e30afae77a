"""Sources to units: which piece of what each worker converts. Tables are cut into files of rows."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rwkv_jax.data.catalog import DATASETS, FAMILIES, open_dataset
from rwkv_jax.data.convert import extra
from rwkv_jax.data.convert.options import Options, Unit
from rwkv_jax.data.convert.readers import IMAGE_SUFFIXES
from rwkv_jax.data.convert.texts import TABLE_SUFFIXES, table_rows
from rwkv_jax.data.records import DatasetError

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_KNOWN = (
    "tars, .parquet, .csv, .tsv or .jsonl files, folders of these or of pictures, and datasets:"
    f" {', '.join([*DATASETS, *(description for _, description in FAMILIES.values())])}"
)


def plan_units(sources: Sequence[str], options: Options, work: Path) -> list[Unit]:
    """The units of all sources, in their order.

    Raises:
        DatasetError: there is no such source, or nothing in it.
    """
    units: list[Unit] = []
    for source in sources:
        before = len(units)
        for unit in _units_of(source, options, work, before):
            units.append(dataclasses.replace(unit, index=len(units)))
        if len(units) == before:
            raise DatasetError(f"{source} holds nothing to convert. Known are {_KNOWN}.")
    return units


def _units_of(source: str, options: Options, work: Path, first: int) -> Iterator[Unit]:
    if source in DATASETS or any(source.startswith(prefix) for prefix in FAMILIES):
        yield from _catalog_units(source, options)
        return
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        shards = [p for p in files if _is_tar(p) or p.suffix.lower() == ".parquet"]
        pictures = [p for p in files if p.suffix.lower().lstrip(".") in IMAGE_SUFFIXES]
        if shards:
            for shard in shards:
                yield from _file_units(shard)
        else:
            rows = ({"picture": str(picture)} for picture in pictures)
            yield from _row_units(path, rows, options, work, first)
    elif not path.is_file():
        raise DatasetError(f"There is no {source}. Known are {_KNOWN}.")
    elif path.suffix.lower() in TABLE_SUFFIXES:
        found = (
            {"line": number, "fields": row}
            if isinstance(row, dict)
            else {"line": number, "problem": row}
            for number, row in table_rows(path)
        )
        yield from _row_units(path, found, options, work, first)
    elif _is_tar(path) or path.suffix.lower() == ".parquet":
        yield from _file_units(path)
    else:
        raise DatasetError(f"{source} is of no known kind. Known are {_KNOWN}.")


def _is_tar(path: Path) -> bool:
    return path.name.lower().endswith(_TARS)


def _file_units(path: Path) -> Iterator[Unit]:
    reader = "tar" if _is_tar(path) else "parquet"
    stop = 0
    if reader == "parquet":
        extra.require("pyarrow", str(path))
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                stop = file.num_row_groups
        except (OSError, ValueError):
            stop = 0  # reading it will say what is wrong, and count it
    # A unit a row group, but for files of one.
    for start in range(max(1, stop)):
        yield Unit(0, reader, str(path), start, start + 1, str(path), path.stat().st_size)


def _row_units(
    origin: Path, rows: Iterator[dict[str, Any]], options: Options, work: Path, first: int
) -> Iterator[Unit]:
    piece: list[str] = []

    def unit(number: int) -> Unit:
        file = work / f"rows-{first:05d}-{number:05d}.jsonl"
        with open(file, "w", encoding="utf-8", errors="surrogateescape") as out:
            out.write("\n".join(piece) + "\n")
        return Unit(0, "rows", str(file), 0, len(piece), str(origin), origin.stat().st_size)

    number = 0
    for row in rows:
        piece.append(json.dumps(row))  # ASCII: surrogates travel as escapes
        if len(piece) == options.rows:
            yield unit(number)
            number += 1
            piece = []
    if piece:
        yield unit(number)


def _catalog_units(name: str, options: Options) -> Iterator[Unit]:
    source = open_dataset(name, options.split, options.data_dir)
    for start in range(0, len(source), options.rows):
        stop = min(start + options.rows, len(source))
        origin = f"{source.name}@{source.content_hash}"
        yield Unit(0, "catalog", name, start, stop, origin, len(source))


def fingerprint(units: Sequence[Unit], options: Options) -> dict[str, Any]:
    """What a conversion that goes on must share with the one that began."""
    return {
        "options": json.loads(options.to_json()),
        "sources": [[unit.origin, unit.start, unit.stop, unit.size] for unit in units],
    }
