"""Fashion-MNIST as Debian packages it, for the probe's benchmark and its test.

Source: Xiao, Rasul and Vollgraf 2017 (arXiv 1708.07747); the files are in the idx format: four
bytes that tell the type and the number of axes, the lengths, then the bytes.
"""

import gzip
import struct
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package


def read(part: str, folder: Path = FOLDER) -> tuple[UInt8[np.ndarray, "n 28 28"], np.ndarray]:
    """Pictures and labels of "train" (60,000) or "t10k" (10,000).

    Raises:
      FileNotFoundError: a file is not there; says which package brings it.
      ValueError: a file is no idx file of bytes, or is cut off.
    """
    return (
        read_idx(folder / f"{part}-images-idx3-ubyte.gz"),
        read_idx(folder / f"{part}-labels-idx1-ubyte.gz"),
    )


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in a gzipped idx file; raises as `read` does."""
    try:
        with gzip.open(path) as file:
            content = file.read()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is missing; on Debian `apt-get install dataset-fashion-mnist` brings it"
        ) from None
    zeros, kind, axes = struct.unpack(">HBB", content[:4])
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    if zeros != 0 or kind != 8 or values.size != np.prod(shape):
        raise ValueError(f"{path} is no whole idx file of bytes: {len(content)} bytes, {shape}")
    return values.reshape(shape)


def features(
    pictures: UInt8[np.ndarray, "n 28 28"], width: int = 640
) -> Float32[np.ndarray, "n width"]:
    """What stands for an encoder's features: a fixed random layer with a ReLU on the pixels."""
    pixels = pictures.reshape(len(pictures), -1).astype(np.float32) / 255  # [n, 784]
    matrix = np.random.default_rng(0).normal(size=(pixels.shape[1], width))
    return np.maximum(pixels @ (matrix / 28).astype(np.float32), 0)
