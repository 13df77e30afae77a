"""One run on many processes: finding the others, agreeing with them, and noticing their end.

JAX finds a TPU pod, SLURM, Open MPI and Kubernetes by itself; elsewhere every process is told the
coordinator's address, how many there are, and which one it is.
"""

import dataclasses
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

# A process that has been silent for so long is taken for dead, and the others end.
HEARTBEAT_TIMEOUT_SECONDS = 30
_DIGEST_BYTES = 32


class ProcessesError(RuntimeError):
    """Processes that cannot run together; the message says which, why and what to do."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What a person says of the processes; all None where JAX is to find out.

    Attributes:
        coordinator: HOST:PORT of process 0, the same for all.
        processes: how many there are.
        process_id: which one this is, from 0.
    """

    coordinator: str | None = None
    processes: int | None = None
    process_id: int | None = None

    def __post_init__(self) -> None:
        given = dataclasses.asdict(self)
        if None in given.values() and any(value is not None for value in given.values()):
            raise ProcessesError(
                "--coordinator, --processes and --process-id go together, got"
                f" {self.coordinator}, {self.processes} and {self.process_id}: give all three, or"
                " none to let JAX find a TPU pod, SLURM or Kubernetes"
            )
        count, index = self.processes, self.process_id
        if count is not None and index is not None and not 0 <= index < count:
            raise ProcessesError(
                f"--process-id {index} must be 0 or more and below --processes {count}"
            )


def join(cluster: Cluster) -> None:
    """Joins the other processes, where there are any; call it before JAX computes anything.

    Raises:
        ProcessesError: a cluster was found or named, and could not be joined.
    """
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.processes,
            cluster.process_id,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
        )
    except (ValueError, IndexError) as error:  # IndexError: of an address without a port
        if cluster.coordinator is None and "coordinator_address" in str(error):
            return  # no cluster was found: one process
        raise ProcessesError(f"cannot join the other processes: {error}") from error
    except RuntimeError as error:
        if cluster.coordinator is None and _computes_on_a_cpu_already():
            return  # a program that calls this one's main(): it is alone
        raise ProcessesError(
            f"cannot join the other processes at {cluster.coordinator or 'the found coordinator'}:"
            f" {str(error).splitlines()[0][:300]}; is process 0 running, and its port open?"
        ) from error


def _computes_on_a_cpu_already() -> bool:
    return jax.default_backend() == "cpu"  # on an accelerator, running alone by mistake costs money


def is_first() -> bool:
    """Whether this process writes what is written once: logs, results, the report."""
    return jax.process_index() == 0


def on_any_process(value: bool) -> bool:
    """Whether it is true on any process; all of them must ask."""
    if jax.process_count() == 1:
        return value
    return bool(np.any(multihost_utils.process_allgather(np.asarray(value))))


# How another process's end shows in exceptions here: of Gloo, of NCCL, of JAX's own service.
_SIGNS_OF_LOSS = ("gloo", "nccl", "heartbeat", "coordination service", "unavailable", "barrier")


def has_lost_others(error: BaseException) -> bool:
    """Whether `error` came from another process's end, not from this one.

    A disk's error did not, whatever words and paths it names; TensorStore's bears `os_error_code`.
    """
    text = str(error).lower()
    if jax.process_count() == 1 or isinstance(error, OSError) or "os_error_code" in text:
        return False
    return any(sign in text for sign in _SIGNS_OF_LOSS)


def leave(message: str) -> NoReturn:
    """Ends this process with status 1 at once: the usual way out would wait for the others."""
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


def code_digest() -> str:
    """SHA-256 of the sources of both packages and of the versions of JAX and NumPy."""
    import rwkv_kernels

    digest = hashlib.sha256(f"{jax.__version__} {np.__version__}".encode())
    for root in (Path(__file__).parent, Path(rwkv_kernels.__file__).parent):
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def check_agreement(configuration: dict[str, Any]) -> None:
    """Compares configuration and code with all other processes; all of them must call it.

    Raises:
        ProcessesError: on every process, naming those that differ from process 0.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(configuration, sort_keys=True)
    digests = {
        "configuration": hashlib.sha256(text.encode()).digest(),
        "code or versions": bytes.fromhex(code_digest()),
    }
    mine = np.frombuffer(b"".join(digests.values()), np.uint8)
    everyone = np.asarray(multihost_utils.process_allgather(mine))
    # [P, kinds * 32] -> [P, kinds, 32]
    everyone = everyone.reshape(len(everyone), len(digests), _DIGEST_BYTES)
    differs = (everyone != everyone[0]).any(axis=2)  # [P, kinds]
    if differs.any():
        which = "; ".join(
            f"{kind} of process {', '.join(map(str, np.flatnonzero(differs[:, column])))}"
            for column, kind in enumerate(digests)
            if differs[:, column].any()
        )
        raise ProcessesError(
            f"the {jax.process_count()} processes do not agree: the {which} differ(s) from process"
            " 0's. Start all of them with the same config, overrides and version of the code"
        )
