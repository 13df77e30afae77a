"""Pictures to a model's input size, and pixels to its input range.

Cropping and resizing run on the host in uint8; `normalise` runs on the device, so that a quarter
of the bytes cross over. Training's crops are in `train_crop`; evaluation resizes with PIL's bicubic
filter (antialiased), because the published numbers were made with it.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, UInt8
from PIL import Image

from rwkv_jax.data.decode import to_rgb

# Per channel, of CLIP's training pictures in [0, 1].
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_CROP_TRIES = 10
_MAX_SIDES_RATIO = 16


def normalise(images: UInt8[Array, "B H W 3"]) -> Float32[Array, "B H W 3"]:
    """uint8 pixels scaled to [0, 1], less CLIP's mean, over its standard deviation; float32."""
    pixels = jax.lax.convert_element_type(images, jnp.float32) / 255
    return (pixels - jnp.asarray(CLIP_MEAN, jnp.float32)) / jnp.asarray(CLIP_STD, jnp.float32)


def resize_center_crop(image: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[np.ndarray, "S S 3"]:
    """The shorter side resized to `size` (PIL, bicubic, antialiased), then the middle square."""
    # A line of pixels would grow to gigabytes before its middle is taken.
    longest = _MAX_SIDES_RATIO * min(image.shape[:2])
    top, left = (max(0, side - longest) // 2 for side in image.shape[:2])
    image = image[top : top + longest, left : left + longest]
    height, width = image.shape[:2]
    scale = size / min(height, width)
    # The longer side is rounded down, as torchvision does, which made the published numbers.
    new_height = size if height <= width else int(height * scale)
    new_width = size if width <= height else int(width * scale)
    if (new_height, new_width) != (height, width):
        resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC)
        image = np.asarray(resized)
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    return image[top : top + size, left : left + size]


def images_to_batch(images: Sequence[Image.Image], size: int) -> UInt8[np.ndarray, "B S S 3"]:
    """PIL pictures of any mode and size as one batch, as evaluation prepares them."""
    batch = np.empty((len(images), size, size, 3), np.uint8)
    for row, image in zip(batch, images, strict=True):
        row[:] = resize_center_crop(to_rgb(image), size)
    return batch


def draw_crop(
    height: int,
    width: int,
    rng: np.random.Generator,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random part, in pixels."""
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(_CROP_TRIES):
        pixels = height * width * rng.uniform(*area)
        shape = math.exp(rng.uniform(*log_ratio))  # width / height
        w, h = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(height - h + 1))
            left = int(rng.integers(width - w + 1))
            return top, left, h, w
    shape = min(max(width / height, ratio[0]), ratio[1])
    w = min(width, max(1, round(height * shape)))
    h = min(height, max(1, round(width / shape)))
    return (height - h) // 2, (width - w) // 2, h, w
