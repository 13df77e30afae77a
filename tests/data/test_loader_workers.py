"""The loader with real worker processes and on the way to the device."""

import itertools
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import chex
import jax
import numpy as np
import pytest
from picture_source import PictureSource

from rwkv_jax.data.config import LoaderConfig
from rwkv_jax.data.loader import make_train_loader
from rwkv_jax.data.prefetch import device_prefetch
from rwkv_jax.data.skipped import TooManySkippedError
from rwkv_jax.data.tokenizer import Tokenizer

SOURCE = PictureSource(150, broken=[3, 20, 21, 99], wordless=[5])
SHARDING = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])


def loader(workers: int = 0, source: PictureSource = SOURCE):
    config = LoaderConfig(image_size=16, context_length=8, workers=workers)
    return make_train_loader(source, config, Tokenizer(8), batch_size=20, seed=1)


def test_batches_and_states_do_not_depend_on_the_number_of_workers():
    with loader(0) as batches:
        expected, states = [], []
        for _ in range(12):
            expected.append(next(batches))
            states.append(batches.get_state())
    assert states[-1]["skipped"]["broken image"]["count"] >= 4
    with loader(1) as batches:
        for batch, state in zip(expected, states, strict=True):
            chex.assert_trees_all_equal(next(batches), batch)
            assert batches.get_state() == state
    with loader(2) as batches:
        batches.set_state(json.loads(json.dumps(states[4])))
        for batch, state in zip(expected[5:], states[5:], strict=True):
            chex.assert_trees_all_equal(next(batches), batch)
            assert batches.get_state() == state


def test_the_state_that_comes_with_a_batch_is_the_one_behind_it():
    with loader() as batches:
        expected = [next(batches) for _ in range(6)]
    before = threading.active_count()
    with device_prefetch(loader(), SHARDING, size=3) as prefetched:
        for batch in expected[:3]:
            device, keys, state = next(prefetched)
            chex.assert_trees_all_equal(jax.device_get(device), {k: batch[k] for k in device})
            assert keys == batch["keys"]
            assert device["image"].sharding == SHARDING
    assert threading.active_count() <= before
    resumed = loader()
    resumed.set_state(state)
    with device_prefetch(resumed, SHARDING, size=1) as prefetched:
        for batch in expected[3:]:
            np.testing.assert_array_equal(next(prefetched).batch["image"], batch["image"])


def test_an_error_in_the_loader_reaches_the_training_loop():
    source = PictureSource(250, broken=range(0, 250, 5))
    prefetched = device_prefetch(loader(source=source), SHARDING, size=2)
    with pytest.raises(TooManySkippedError, match="broken image"):
        list(itertools.islice(prefetched, 40))
    with pytest.raises(RuntimeError, match="the prefetch is closed"):
        next(prefetched)


SCRIPT = """
import os, sys
sys.path.insert(0, sys.argv[1])
import test_loader_workers as t
if __name__ == "__main__":
    batches = t.loader(workers=1)
    prefetched = t.device_prefetch(batches, t.SHARDING, size=2)
    next(prefetched)
    import multiprocessing
    (worker,) = multiprocessing.active_children()
    print(worker.pid, flush=True)
    if sys.argv[2] == "fail":
        raise SystemExit(3)  # nothing is closed
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(("how", "code"), [("fail", 3), ("kill", -9)])
def test_no_worker_outlives_the_training_process(tmp_path, how, code):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    here = pathlib.Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    # Output to a file: a worker that lives on would hold a pipe open.
    with open(tmp_path / "out", "w+") as out:
        command = [sys.executable, str(script), str(here), how]
        done = subprocess.run(command, env=environment, stdout=out, timeout=60, check=False)
        out.seek(0)
        worker = int(out.read())
    assert done.returncode == code
    for _ in range(100):
        if not _alive(worker):
            return
        time.sleep(0.1)
    pytest.fail(f"worker {worker} still runs")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A dead orphan may wait for an init process that never collects it.
    status = pathlib.Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")
