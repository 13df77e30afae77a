"""A random part of an encoded picture at a model's size, with as little decoding as that needs.

Unusual: the part is drawn before the picture is decoded, from the size in its header. A JPEG is
then decoded at the smallest of the scales 1/8, 2/8, ... 8/8 that still gives the part `size` pixels
a side. The scale is taken in the DCT, which drops the frequencies that a smaller picture cannot
hold, so what is left to do is a resize by less than 5/4 (from 4/8 up). A crop that needs all pixels
gets them. Other formats, and JPEGs that are turned (EXIF) or CMYK, are decoded whole. Small PNGs,
as icons and digits are, are decoded once and kept: they cost more to decode than to crop.
"""

import functools
import io
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from rwkv_jax.data.decode import MAX_PIXELS, decode_image
from rwkv_jax.data.preprocess import draw_crop

# Up to here a bilinear resize is as close to a filtered one as INTER_AREA is, in a fifth of the
# time; beyond, it takes single pixels of many, and INTER_AREA averages.
_BILINEAR_SHRINK = 1.3
# Kept: at most 8,192 of 96 x 96 x 3 bytes, and files no larger than that: twice 226 MB a process.
_SMALL_PNG_PIXELS = 96 * 96
_SMALL_PNG_BYTES = 3 * _SMALL_PNG_PIXELS
_KEPT_PNGS = 8_192
_UPRIGHT = 1  # EXIF's value
_ORIENTATION = 0x0112


class _Size(NamedTuple):
    height: int
    width: int


def decode_train_crop(
    data: bytes,
    size: int,
    rng: np.random.Generator,
    *,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> UInt8[np.ndarray, "S S 3"]:
    """A random part of the picture, stretched to `size` x `size`.

    Args:
        data: an encoded file.
        size: side of the result, in pixels.
        rng: draws the part's area, shape and place.
        area: smallest and largest share of the picture's area.
        ratio: smallest and largest width / height, drawn log-uniformly.

    Returns:
        RGB, uint8. Where ten draws do not fit into the picture (one that is long and thin), the
        largest centred part whose shape lies within `ratio`.

    Raises:
        ImageError: as `decode_image`.
    """
    whole = _scalable(data)
    if whole is None:
        image = _decode_small(data) if _is_small_png(data) else decode_image(data)
        top, left, h, w = draw_crop(image.shape[0], image.shape[1], rng, area, ratio)
    else:
        top, left, h, w = draw_crop(*whole, rng, area, ratio)
        eighths = min(8, max(1, -(-8 * size // min(h, w))))
        scaled = _decode_scaled(data, whole, eighths)
        if scaled is None:
            # A damaged file may be read another way; its errors are told in one way.
            image = decode_image(data)
        else:
            # In exact eighths: the last column of a scaled picture may stand for less than one.
            image = scaled
            h, w = (max(1, round(side * eighths / 8)) for side in (h, w))
            top = min(round(top * eighths / 8), image.shape[0] - h)
            left = min(round(left * eighths / 8), image.shape[1] - w)
    return _resize(image[top : top + h, left : left + w], size)


def _is_small_png(data: bytes) -> bool:
    """By its header chunk, which is the first one; others may hold any number of bytes."""
    if len(data) > _SMALL_PNG_BYTES or data[:8] + data[12:16] != b"\x89PNG\r\n\x1a\nIHDR":
        return False
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    return width * height <= _SMALL_PNG_PIXELS


# What it returns is shared: it is cropped and resized into a new array, never written.
_decode_small = functools.lru_cache(_KEPT_PNGS)(decode_image)


def _scalable(data: bytes) -> _Size | None:
    """The size of a JPEG that can be decoded at a scale; None for all else."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colours not in ("YCbCr", "Gray") or height * width > MAX_PIXELS or _turned(data):
        return None
    return _Size(height, width)


def _turned(data: bytes) -> bool:
    # Most pictures have been stripped of their EXIF; parsing what is there costs 0.1 ms.
    if b"Exif\0\0" not in data[:65_536]:
        return False
    try:
        with Image.open(io.BytesIO(data)) as header:
            return header.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT
    except Exception:  # PIL's readers raise many kinds; decoding it whole will say what is wrong.
        return True


def _decode_scaled(data: bytes, whole: _Size, eighths: int) -> UInt8[np.ndarray, "H W 3"] | None:
    """The picture at `eighths` / 8 of its size, rounded up; None if it cannot be decoded."""
    try:
        return simplejpeg.decode_jpeg(
            data,
            min_height=-(-whole.height * eighths // 8),
            min_width=-(-whole.width * eighths // 8),
        )
    except ValueError:
        return None


def _resize(crop: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[np.ndarray, "S S 3"]:
    height, width = crop.shape[:2]
    if min(height, width) < size:
        method = cv2.INTER_CUBIC  # INTER_AREA would give blocks
    elif max(height, width) <= _BILINEAR_SHRINK * size:
        method = cv2.INTER_LINEAR
    else:
        method = cv2.INTER_AREA
    return cv2.resize(crop, (size, size), interpolation=method)
