"""Random changes of a picture's colours: one affine map of RGB for the whole picture.

Brightness, contrast, saturation and hue are linear in RGB (hue as a turn about the grey axis, which
differs from HSV's only in how bright a colour stays), so their product is one matrix and one pass
over the pixels, rounded and clipped once.
"""

import math

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from rwkv_jax.data.config import ColourConfig

# Luma of ITU-R BT.601, what "grey" means in PIL and OpenCV.
_LUMA = np.array([0.299, 0.587, 0.114])


def jitter_colour(
    image: UInt8[np.ndarray, "H W 3"], config: ColourConfig, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """The picture with its brightness, contrast, saturation and hue changed at random.

    Each factor is drawn uniformly from [1 - x, 1 + x] and the hue's turn from [-x, x] (1 is a full
    circle), x being the config's value; with `grey_probability` the picture loses its colours.
    Nothing is drawn, and the picture comes back as it is, where all are 0.
    """
    if config == ColourConfig():
        return image
    brightness, contrast, saturation = (
        rng.uniform(1 - x, 1 + x) for x in (config.brightness, config.contrast, config.saturation)
    )
    turn = rng.uniform(-config.hue, config.hue)
    if rng.random() < config.grey_probability:
        saturation = 0.0
    colours = brightness * contrast * _saturate(saturation) @ _turn_hue(turn)
    # Contrast keeps the picture's mean grey where brightness has moved it.
    mean_grey = brightness * float(_LUMA @ image.reshape(-1, 3).mean(axis=0))  # [H * W, 3]
    offset = np.full((3, 1), (1 - contrast) * mean_grey)
    return cv2.transform(image, np.hstack([colours, offset]))


def _saturate(factor: float) -> Float64[np.ndarray, "3 3"]:
    """Moves each colour towards its grey (below 1) or away from it (above)."""
    return factor * np.eye(3) + (1 - factor) * np.tile(_LUMA, (3, 1))


def _turn_hue(turn: float) -> Float64[np.ndarray, "3 3"]:
    """Turns colours about the grey axis, 1 being a full circle (Rodrigues' formula)."""
    angle = 2 * math.pi * turn
    axis = np.ones(3) / math.sqrt(3)
    cross = np.cross(np.eye(3), axis).T
    return (
        math.cos(angle) * np.eye(3)
        + math.sin(angle) * cross
        + (1 - math.cos(angle)) * np.outer(axis, axis)
    )
