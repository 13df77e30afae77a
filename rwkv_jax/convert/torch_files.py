"""Tensors from `.pt`, `.npz` and `.safetensors` files, by name, none of them freely unpickled.

Shapes are known before data is read, so a file cannot make us allocate more than the model needs.
"""

import contextlib
import dataclasses
import functools
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from rwkv_jax.convert.torch_layout import ConversionError

WRAPPERS = {"module", "_orig_mod"}  # DistributedDataParallel's and torch.compile's


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor whose shape is known, and whose data is read when NumPy asks for the array."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype)


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[dict[str, StoredTensor]]:
    """The tensors of a weights file, under their names without wrappers.

    Raises:
        FileNotFoundError: no such file.
        ConversionError: it is of no known kind, unreadable, or a name comes twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    if path.suffix not in _OPENERS:
        known = ", ".join(_OPENERS)
        raise ConversionError(f"{path.name}: weights must be one of {known}, got {path.suffix!r}")
    with contextlib.ExitStack() as stack:
        try:
            tensors = stack.enter_context(_OPENERS[path.suffix](path))
        except (ConversionError, ModuleNotFoundError):
            raise
        except Exception as error:  # the formats' readers raise whatever their parsers do
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            raise ConversionError(
                f"{path} cannot be read as {path.suffix} ({type(error).__name__}: {reason});"
                " download or save it again"
            ) from error
        yield _without_wrappers(tensors)


def _without_wrappers(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    bare: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        short = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if short in bare:
            raise ConversionError(f"the weights hold {short} twice, the second time as {name}")
        bare[short] = tensor
    return bare


@contextlib.contextmanager
def _open_npz(path: Path) -> Iterator[dict[str, StoredTensor]]:
    with zipfile.ZipFile(path) as archive:
        tensors = {}
        for member in archive.namelist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read_header = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read_header(file)
            name = member.removesuffix(".npy")
            _check_floating(name, dtype)
            tensors[name] = StoredTensor(shape, functools.partial(_read_npy, archive, member))
        yield tensors


def _read_npy(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


@contextlib.contextmanager
def _open_safetensors(path: Path) -> Iterator[dict[str, StoredTensor]]:
    from safetensors import safe_open

    # NumPy has no bfloat16 of its own; through JAX it has.
    with safe_open(path, framework="flax") as file:
        tensors = {}
        for name in file.keys():  # noqa: SIM118 (no mapping)
            shape = tuple(file.get_slice(name).get_shape())
            tensors[name] = StoredTensor(shape, functools.partial(file.get_tensor, name))
        yield tensors


@contextlib.contextmanager
def _open_torch(path: Path) -> Iterator[dict[str, StoredTensor]]:
    try:
        import torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"reading {path.name} needs PyTorch: pip install 'rwkv-jax[torch]', or save the"
            " weights as .safetensors"
        ) from None
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED:
                    raise ConversionError(
                        f"{path}: {member.filename} is compressed, which PyTorch never does;"
                        " it could unpack to any size, so it is not read"
                    )
    # weights_only: an unpickler that builds tensors and containers, and runs nothing.
    loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(loaded, Mapping) or not all(map(torch.is_tensor, loaded.values())):
        kind = type(loaded).__name__
        raise ConversionError(
            f"{path} must hold a state dict (names to tensors), got a {kind} of other things"
        )
    tensors = {}
    for name, tensor in loaded.items():
        _check_floating(name, "float" if tensor.is_floating_point() else str(tensor.dtype))
        # NumPy has no bfloat16; every bfloat16 is a float32.
        tensors[name] = StoredTensor(tuple(tensor.shape), tensor.float().numpy)
    yield tensors


def _check_floating(name: str, dtype: Any) -> None:
    if not np.issubdtype(np.dtype(dtype), np.floating):
        raise ConversionError(f"{name} must hold floating-point numbers, got {dtype}")


_OPENERS = {
    ".npz": _open_npz,
    ".safetensors": _open_safetensors,
    ".pt": _open_torch,
    ".pth": _open_torch,
    ".bin": _open_torch,
}
