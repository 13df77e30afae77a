"""A run's folder, before anything is written into it: whose it is, and that nobody else writes."""

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from rwkv_jax.config import ConfigError, RunConfig, differences
from rwkv_jax.weights import MODEL_FILE, whole_steps

CONFIG_FILE = "config.json"
_LOCK_FILE = ".lock"
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a file system


def check_workdir(workdir: Path, config: RunConfig) -> None:
    """That it is new, or holds the same run.

    Raises:
        ConfigError: it is no folder, holds another run, or something that a run would overwrite.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"--workdir {workdir} is a file: name a folder, which may be new")
    file = workdir / CONFIG_FILE
    if not file.exists():
        held = [name for name in (MODEL_FILE, "params") if (workdir / name).exists()]
        if held or whole_steps(workdir):
            raise ConfigError(
                f"--workdir {workdir} holds {', '.join(held) or 'checkpoints'}, but no"
                f" {CONFIG_FILE} of a run: give another --workdir, or put that file back"
            )
        return
    try:
        saved = json.loads(file.read_text("utf-8"))
        changed = differences(saved, config.to_dict())
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{file} is damaged ({error}): put it back, or give another --workdir"
        ) from error
    if changed:
        raise ConfigError(
            f"{workdir} holds a run of another configuration ({'; '.join(changed)}):"
            " give the new run another --workdir, or take these settings back"
        )


@contextlib.contextmanager
def alone_in(workdir: Path) -> Iterator[None]:
    """Holds a folder, made if missing, until the block or the process ends, however it ends.

    Raises:
        ConfigError: another process holds it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / _LOCK_FILE, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ConfigError(
                f"--workdir {workdir} is being trained in by another process"
                f" ({file.read().strip() or 'unknown'}): give another --workdir, or end that one"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS_HERE:
                raise
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
