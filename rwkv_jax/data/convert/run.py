"""A whole conversion: plan, convert what is not converted yet, finish."""

import contextlib
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rwkv_jax.data.convert import extra
from rwkv_jax.data.convert.engines import convert_here, convert_on_ray
from rwkv_jax.data.convert.finish import finish
from rwkv_jax.data.convert.nothing import why_nothing
from rwkv_jax.data.convert.options import Options, Unit
from rwkv_jax.data.convert.plan import fingerprint, plan_units
from rwkv_jax.data.convert.texts import build_side_texts, json_object
from rwkv_jax.data.convert.unit import report_file, side_file
from rwkv_jax.data.record_files import manifest_name
from rwkv_jax.data.records import DatasetError
from rwkv_jax.files import write_atomically


def convert(
    sources: Sequence[str],
    out: str | Path,
    options: Options,
    *,
    processes: int = 1,
    ray: str | None = None,
) -> dict[str, Any]:
    """Converts, or goes on with a conversion that was cut off; gives the manifest.

    Args:
        sources: see `plan`.
        out: the folder of the dataset, made if missing; it may hold other splits already.
        processes: on this machine.
        ray: the address of a Ray cluster, which then does the work instead.

    Raises:
        DatasetError: a source is not as it should be or gives not one record, `out` holds another
            conversion, or what it takes is not installed.
        ConversionError: a unit could not be written.
    """
    if processes < 1:
        raise DatasetError(f"processes = {processes}, but it must be 1 or more")
    if options.duplicates == "perceptual":
        extra.require("imagehash", "--duplicates perceptual")
    out = Path(out)
    work = out / f".work-{options.split}"
    work.mkdir(parents=True, exist_ok=True)
    with _locked(work):
        for kind, table in options.side.items():
            if not Path(table).is_file():
                raise DatasetError(f"There is no side file {table} (of {kind!r}).")
            build_side_texts(kind, Path(table), side_file(work, kind))
        units = plan_units(sources, options, work)
        plan = fingerprint(units, options)
        manifest = _read(out / manifest_name(options.split), "delete it")
        if manifest is None:
            begun = _read(work / "plan.json", f"delete the folder {work}")
            if begun not in (None, plan):
                raise DatasetError(
                    f"{work} holds a conversion that began with other sources or settings: start"
                    " it again with those to go on, or delete that folder"
                )
            write_atomically(work / "plan.json", json.dumps(plan, sort_keys=True))
            _convert_units(units, options, work, processes, ray)
            reports = [json.loads(report_file(work, u.index).read_text("utf-8")) for u in units]
            nothing = why_nothing(units, reports)
            if nothing:
                shutil.rmtree(work)  # its plan would refuse the corrected command
                raise DatasetError(nothing)
            with tqdm(total=len(units), desc="shards into place", unit="shard") as bar:
                manifest = finish(reports, plan, options, work, out, bar.update)
        shutil.rmtree(work)
    if manifest.get("plan") != plan:
        raise DatasetError(
            f"{out} holds another conversion of the split {options.split!r}: delete its"
            f" {manifest_name(options.split)} and shards, or give another --out or --split"
        )
    return manifest


def _convert_units(
    units: Sequence[Unit], options: Options, work: Path, processes: int, ray: str | None
) -> None:
    left = [unit for unit in units if not report_file(work, unit.index).exists()]
    samples = 0
    lock = threading.Lock()
    with tqdm(total=len(units), initial=len(units) - len(left), desc="units", unit="unit") as bar:

        def seen() -> None:
            nonlocal samples
            with lock:
                samples += 1
                if samples % 100 == 0:
                    show()

        def show() -> None:
            rate = samples / max(1e-9, bar.format_dict["elapsed"])
            bar.set_postfix_str(f"{samples:,} samples, {rate:,.0f}/s")

        if ray is not None:
            reports = convert_on_ray(left, options, work, address=ray)
        else:
            reports = convert_here(left, options, work, processes=processes, seen=seen)
        for _, report in reports:
            if ray is not None:
                samples += sum(report["counts"].values())
            show()
            bar.update()


def _read(path: Path, remedy: str) -> dict[str, Any] | None:
    """A file of this package's; None where there is none. Raises DatasetError: it is damaged."""
    try:
        found = json_object(path.read_bytes())
    except FileNotFoundError:
        return None
    if isinstance(found, str):
        raise DatasetError(f"{path} is damaged ({found}): {remedy} and start again")
    return found


@contextlib.contextmanager
def _locked(work: Path) -> Iterator[None]:
    handle = os.open(work / "lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DatasetError(f"{work} is being written by another process; wait for it") from None
    else:
        yield
    finally:
        os.close(handle)
