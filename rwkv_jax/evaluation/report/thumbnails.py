"""Small pictures as data URIs, so that the page needs no other file."""

import base64
import io

from PIL import Image

from rwkv_jax.data.decode import decode_image
from rwkv_jax.data.preprocess import resize_center_crop
from rwkv_jax.data.records import Source


def thumbnail(source: Source, index: int, side: int) -> str:
    """One of the source's pictures, cropped at the centre, as `data:image/webp;base64,...`."""
    pixels = resize_center_crop(decode_image(source[index]["image"]), side)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
