"""One picture: whole, of a sane size, in a plain mode, or rejected with the reason.

Unusual: a file that is fine is kept byte for byte. Only what the loader would have to mend
(palettes, CMYK, alpha, 16 bits, odd formats) or what is larger than `max_side` is encoded anew:
JPEG again where it was lossy, PNG where it was not.
"""

import functools
import hashlib
import io
import warnings
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from rwkv_jax.data.convert.options import Options, Rejected
from rwkv_jax.data.decode import to_rgb

# Others have decoders that run programs (EPS) or have no use for photographs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "MPO")
# A phone's MPO is a JPEG with something behind it.
_PLAIN = {"JPEG": ("RGB", "L"), "MPO": ("RGB", "L"), "PNG": ("RGB", "L"), "WEBP": ("RGB",)}
_LOSSY = ("JPEG", "WEBP", "AVIF", "MPO")
# What a perceptual hash needs of a picture, which it makes 32 pixels wide.
_HASHED_SIDE = 128
# Re-encoding is seen by no model at this quality, at half the bytes of 100.
_QUALITY = 95


class Checked(NamedTuple):
    """Attributes:
    data: the file to keep.
    digest: 16 bytes of the sha256 of the file as it came.
    looks: its perceptual hash, 64 bits, or 0 where that is not asked for.
    recoded: whether `data` is another file.
    """

    data: bytes
    digest: bytes
    looks: int
    recoded: bool


def check_image(data: bytes, options: Options) -> Checked:
    """Decodes the whole picture.

    Raises:
        Rejected: see its outcome.
    """
    if not data:
        raise Rejected("broken image", "the file is empty")
    if len(data) > options.max_bytes:
        raise Rejected("file too large", f"{len(data)} bytes, more than {options.max_bytes}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PIL's own limit, and of odd metadata
            return _check(data, options)
    except UnidentifiedImageError:
        raise Rejected("broken image", f"no image; it starts with {data[:8]!r}") from None
    except Image.DecompressionBombError as error:
        raise Rejected("too many pixels", str(error)) from None
    except (Rejected, MemoryError):
        raise
    except Exception as error:  # PIL's readers raise many kinds on damaged files.
        raise Rejected("broken image", f"{type(error).__name__}: {error}") from None


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this PIL can read: it would fail on any other name."""
    Image.init()
    return tuple(form for form in FORMATS if form in Image.OPEN)


def _check(data: bytes, options: Options) -> Checked:
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
        width, height = image.size
        if width * height > options.max_pixels:
            raise Rejected(
                "too many pixels", f"{width} x {height}, more than {options.max_pixels} in all"
            )
        if min(width, height) < options.min_side:
            raise Rejected("too small", f"{width} x {height}, less than {options.min_side} a side")
        form = image.format or ""
        # A phone's MPO holds a second view, a TIFF further pages: the first is the picture.
        if form in ("GIF", "WEBP", "PNG", "AVIF") and getattr(image, "n_frames", 1) > 1:
            raise Rejected("animated image", f"{getattr(image, 'n_frames', 0)} frames of {form}")
        plain = image.mode in _PLAIN.get(form, ()) and not image.has_transparency_data
        shrink = bool(options.max_side) and max(width, height) > options.max_side
        if plain and not shrink and form == "JPEG":
            # Entropy decoding reads all of the file at any scale, the rest is quicker at 1/8.
            least = _HASHED_SIDE if options.duplicates == "perceptual" else 1
            image.draft("RGB", (max(width // 8, least), max(height // 8, least)))
        image.load()
        looks = 0
        if options.duplicates == "perceptual":
            import imagehash  # of the extra `convert`

            small = Image.fromarray(to_rgb(image))
            looks = int(str(imagehash.phash(small)), 16)
        digest = hashlib.sha256(data).digest()[:16]
        if plain and not shrink:
            return Checked(data, digest, looks, recoded=False)
        pixels = to_rgb(image)
    if shrink:
        height, width = pixels.shape[:2]
        scale = options.max_side / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return Checked(_encode(pixels, form), digest, looks, recoded=True)


def _encode(pixels: np.ndarray, form: str) -> bytes:
    file = io.BytesIO()
    if form in _LOSSY:
        Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY, subsampling=0)
    else:
        Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
