"""Encoded picture files to RGB arrays, by OpenCV.

Unusual: what is transparent becomes white (as in the open emoji data), 16 bits become 8, and EXIF
orientation is applied, so that photographs from a phone stand upright (CLIP's own code ignores it).
"""

import io
import math

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

# Above this, one small file (a "decompression bomb") could take all memory. 300 MB of RGB.
MAX_PIXELS = 100_000_000


class ImageError(ValueError):
    """A file is no image, or is damaged; the message says which."""


def decode_image(data: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """The picture in an encoded file (PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF) as RGB, uint8.

    Raises:
        ImageError: the file is empty, of an unknown format, truncated, damaged or too large.
    """
    if not data:
        raise ImageError("the file is empty")
    try:
        # Reads the header only; OpenCV would allocate whatever a header claims.
        with Image.open(io.BytesIO(data)) as header:
            size, form = header.size, header.format
    except UnidentifiedImageError:
        raise ImageError(f"no known image format; the file starts with {data[:8]!r}") from None
    except Exception as error:  # PIL's readers raise many kinds on a damaged header.
        raise ImageError(f"the header is damaged: {error}") from None
    if math.prod(size) > MAX_PIXELS:
        raise ImageError(f"{size[0]} x {size[1]} pixels, more than {MAX_PIXELS} in all")
    # A JPEG has no alpha; only the colour mode applies the orientation.
    mode = cv2.IMREAD_COLOR if form == "JPEG" else cv2.IMREAD_UNCHANGED
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
    except cv2.error as error:
        raise ImageError(f"the {form} data is damaged: {error.err}") from None
    if pixels is None:
        raise ImageError(f"the {form} data is damaged or cut off after {len(data)} bytes")
    return _to_rgb(pixels)


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """A PIL picture as `decode_image` would give it."""
    if image.mode.startswith("I;16"):
        return _to_rgb(np.asarray(image).astype(np.uint16))
    image = ImageOps.exif_transpose(image)
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    return _to_rgb(np.asarray(image.convert("RGBA"))[:, :, [2, 1, 0, 3]])


def _to_rgb(pixels: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
    """OpenCV's pixels, [H, W] grey or [H, W, 3 or 4] BGR(A) of 8 or 16 bits, to RGB on white."""
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ImageError(f"pixels of type {pixels.dtype}; expected 8 or 16 bits without sign")
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    if pixels.shape[2] == 3:
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    colour, alpha = pixels[:, :, 2::-1].astype(np.uint16), pixels[:, :, 3:].astype(np.uint16)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def prepare_opencv() -> None:
    """For a process that decodes: one thread (the processes share the cores), no messages.

    A broken picture is reported by its key, by whoever called `decode_image`.
    """
    cv2.setNumThreads(0)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
