"""Checksums of a checkpoint's files: a flipped byte is found before it becomes a parameter.

CRC-32, because the enemy is a disk, not a person: it finds every single flipped bit, at the speed
of reading. Orbax itself notices a truncated array, not a changed number.
"""

import json
import zlib
from pathlib import Path

from rwkv_jax.files import write_atomically

CHECKSUMS_FILE = "checksums.json"
_BLOCK = 2**22


def write_checksums(folder: Path) -> None:
    """Writes `folder`/checksums.json: size and CRC-32 of every file in its subfolders."""
    found = {name: [path.stat().st_size, _crc32(path)] for name, path in _files(folder).items()}
    write_atomically(folder / CHECKSUMS_FILE, json.dumps(found, indent=0) + "\n")


def find_damage(folder: Path, item: str = "") -> str | None:
    """What is wrong with the files of `folder`, in a few words, or None.

    A folder without checksums (of an older version) is taken as it is.

    Args:
        item: of one subfolder alone, such as "params"; all by default.
    """
    path = folder / CHECKSUMS_FILE
    if not path.exists():
        return None
    try:
        expected = json.loads(path.read_text("utf-8"))
        files = _files(folder)
        for name, (size, crc) in expected.items():
            if item and not name.startswith(f"{item}/"):
                continue
            if name not in files:
                return f"{name} is missing"
            if files[name].stat().st_size != size:
                return f"{name} has {files[name].stat().st_size} bytes, not {size}"
            if _crc32(files[name]) != crc:
                return f"{name} has changed since it was written"
    except (ValueError, TypeError, OSError) as error:
        return f"{CHECKSUMS_FILE} or a file that it names cannot be read ({error})"
    return None


def _files(folder: Path) -> dict[str, Path]:
    """By name, every file below the item folders; those beside them are Orbax's and ours."""
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.glob("*/**/*"))
        if path.is_file()
    }


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc
