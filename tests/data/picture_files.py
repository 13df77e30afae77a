"""Real picture files of every kind, for the tests of the converter."""

import io

import numpy as np
from PIL import Image


def picture(index: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """Large blobs of colour that differ from index to index."""
    corners = np.random.default_rng(index).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "JPEG", **arguments) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **arguments)
    return file.getvalue()


def jpeg(index: int, size: tuple[int, int] = (40, 32), **arguments) -> bytes:
    return encoded(picture(index, size), "JPEG", **arguments)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, with nothing behind the claim but a few bytes."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )
