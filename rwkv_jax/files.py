"""Writing files so that a reader finds the old one or the new one, never half of one."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, text: str) -> None:
    """Writes UTF-8 `text` beside `path` and renames it into place."""
    write_bytes_atomically(path, text.encode("utf-8"))


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Writes `content` beside `path` and renames it into place."""
    with open_atomically(path) as file:
        file.write(content)


@contextlib.contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """A new file beside `path` that becomes `path` when the block ends, or vanishes if it raises.

    Raises:
      OSError: it cannot be written; its `filename` is `path`.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            os.chmod(temporary, 0o644)  # mkstemp keeps everyone else out
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a full disk names no file, a folder's error the temporary
        raise


def disk_error(error: OSError) -> str:
    """An error of the disk as a sentence: which file, why, what to do."""
    what = error.filename or "a file"
    why = error.strerror or error
    return (
        f"{what} cannot be written or read ({why}):"
        " check the path, its permissions and the free space there"
    )
