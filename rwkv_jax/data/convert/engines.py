"""Many units at once: processes of this machine, or Ray Data over many; the same code a unit."""

import concurrent.futures
import dataclasses
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rwkv_jax.data.convert.options import Options, Unit
from rwkv_jax.data.convert.supervise import ConversionError, Worker
from rwkv_jax.data.records import DatasetError

Reports = Iterator[tuple[int, dict[str, Any]]]


def convert_here(
    units: Sequence[Unit],
    options: Options,
    work: Path,
    *,
    processes: int,
    seen: Callable[[], None] = lambda: None,
) -> Reports:
    """Unit numbers and their reports, as they are done.

    Args:
        seen: called for each sample, from several threads.
    """
    local = threading.local()
    workers: list[Worker] = []

    def convert(unit: Unit) -> tuple[int, dict[str, Any]]:
        if not hasattr(local, "worker"):
            local.worker = Worker()
            workers.append(local.worker)
        return unit.index, local.worker.convert(unit, options, work, seen)

    pool = concurrent.futures.ThreadPoolExecutor(processes)
    try:
        futures = [pool.submit(convert, unit) for unit in units]
        for future in concurrent.futures.as_completed(futures):
            yield future.result()
    finally:
        # Cut off (an error, Ctrl-C): units that run are ended, and begun anew the next time.
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.close()
        pool.shutdown()


def convert_on_ray(units: Sequence[Unit], options: Options, work: Path, *, address: str) -> Reports:
    """The same on a Ray cluster; sources and output must lie where every machine sees them.

    Args:
        address: "local" starts Ray on this machine, "auto" finds a cluster; others as Ray's.
            Paths may be relative where all machines know this process's folder by the same name.

    Raises:
        DatasetError: Ray is not installed.
        ConversionError: a unit could not be written.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise DatasetError("Ray Data is not installed: pip install -e '.[ray]'") from error
    ours = not ray.is_initialized()
    if ours:
        ray.init(address=address, log_to_driver=False, include_dashboard=False)
    try:
        items = [{"unit": json.dumps(dataclasses.asdict(unit))} for unit in units]
        if not items:
            return
        task: Any = _RayTask  # Ray's annotations know no callable classes
        # A block a unit, so that each is a task of its own.
        rows = ray.data.from_items(items, override_num_blocks=len(items))
        made = rows.map(
            task,
            fn_constructor_args=(options.to_json(), str(work), os.getcwd()),
            num_cpus=1,
            concurrency=(1, max(1, int(ray.cluster_resources().get("CPU", 1)))),
        )
        for row in made.iter_rows():
            yield int(row["index"]), json.loads(row["report"])
    except ray.exceptions.RayError as error:
        # Ray's own message is a traceback, which ends with ours.
        raise ConversionError(str(error).strip().splitlines()[-1]) from error
    finally:
        if ours:
            ray.shutdown()


class _RayTask:
    """An actor of Ray's with a worker process of its own."""

    def __init__(self, options: str, work: str, folder: str):
        self._options = Options.from_json(options)
        self._work = Path(work)
        self._worker = Worker(folder=folder)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        unit = Unit(**json.loads(row["unit"]))
        report = self._worker.convert(unit, self._options, self._work)
        return {"index": unit.index, "report": json.dumps(report)}
