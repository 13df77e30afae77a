"""Batches to the devices, some ahead of the training step, each with the loader's state behind it.

The state that belongs to a batch travels with it: the loader itself is ahead by as many batches as
are waiting, so its own `get_state` would skip those after a restart.
"""

import queue
import threading
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple, TypedDict

import jax
from jaxtyping import Array, Int32, UInt8

from rwkv_jax.data.loader import TrainLoader

# How often a waiting thread looks whether it should stop, in seconds.
_POLL = 0.1
_JOIN_TIMEOUT = 30


class DeviceBatch(TypedDict):
    """The arrays of `Batch`, on the devices; B counts all processes."""

    image: UInt8[Array, "B S S 3"]
    text: Int32[Array, "B L"]
    concept: Int32[Array, " B"]
    kind: Int32[Array, " B"]


class Prefetched(NamedTuple):
    """A batch, this process's keys of it, and the state from which the next batch follows."""

    batch: DeviceBatch
    keys: list[str]
    state: dict[str, Any]


class DevicePrefetch(Iterator[Prefetched]):
    """See `device_prefetch`."""

    def __init__(self, loader: TrainLoader, sharding: jax.sharding.Sharding, size: int):
        if size < 1:
            raise ValueError(f"size = {size}, but at least one batch has to be made ahead")
        self._loader = loader
        self._ready: queue.Queue[Prefetched | BaseException] = queue.Queue(size)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=_fill, args=(loader, sharding, self._ready, self._stop), daemon=True
        )
        # Also at exit: a thread that is still in JAX when the interpreter goes would crash it.
        self._shut_down = weakref.finalize(self, _shut_down, loader, self._thread, self._stop)
        self._thread.start()

    def __next__(self) -> Prefetched:
        """The next batch.

        Raises:
            Whatever the loader raises; the prefetch is closed then.
        """
        while self._shut_down.alive:
            try:
                item = self._ready.get(timeout=_POLL)
            except queue.Empty:
                continue
            if isinstance(item, BaseException):
                self.close()
                raise item
            return item
        raise RuntimeError("the prefetch is closed")

    def close(self) -> None:
        """Stops the thread and closes the loader. Safe to call twice."""
        self._shut_down()

    def __enter__(self) -> "DevicePrefetch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def device_prefetch(
    loader: TrainLoader, sharding: jax.sharding.Sharding, size: int
) -> DevicePrefetch:
    """Puts batches on the devices in a thread, up to `size` ahead; it owns the loader from here.

    Args:
        loader: yields this process's part of each batch.
        sharding: splits the leading axis of every array over the devices of all processes.
        size: batches that wait on the devices.

    Returns:
        An iterator of `Prefetched`; a context manager, or close it: that ends the thread and the
        loader's workers.
    """
    return DevicePrefetch(loader, sharding, size)


def _fill(
    loader: TrainLoader,
    sharding: jax.sharding.Sharding,
    ready: "queue.Queue[Prefetched | BaseException]",
    stop: threading.Event,
) -> None:
    while not stop.is_set():
        item: Prefetched | BaseException
        try:
            host = next(loader)
            device = DeviceBatch(
                image=jax.make_array_from_process_local_data(sharding, host["image"]),
                text=jax.make_array_from_process_local_data(sharding, host["text"]),
                concept=jax.make_array_from_process_local_data(sharding, host["concept"]),
                kind=jax.make_array_from_process_local_data(sharding, host["kind"]),
            )
            item = Prefetched(device, host["keys"], loader.get_state())
        except BaseException as error:  # Raised again in the training loop.
            item = error
        while not stop.is_set():
            try:
                ready.put(item, timeout=_POLL)
                break
            except queue.Full:
                continue
        if isinstance(item, BaseException):
            return


def _shut_down(loader: TrainLoader, thread: threading.Thread, stop: threading.Event) -> None:
    stop.set()
    if thread is not threading.current_thread():
        # A reader that hangs must not keep the program from ending.
        thread.join(timeout=_JOIN_TIMEOUT)
    loader.close()
