"""Decoding of real files of every kind, crops, the evaluation's resize, normalisation."""

import io

import chex
import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rwkv_jax.data import decode, preprocess
from rwkv_jax.data.decode import ImageError, decode_image, to_rgb


def picture(width: int = 40, height: int = 30) -> Image.Image:
    """Smooth, with different channels and no symmetry, so that a swap or a flip shows."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [255 * x / width, 255 * y / height, 255 * (x + y) / (width + height)]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_are_exact(form):
    np.testing.assert_array_equal(decode_image(encoded(picture(), form)), np.asarray(picture()))


@pytest.mark.parametrize(
    "data",
    [
        encoded(picture(), "JPEG", quality=95),
        encoded(picture(), "WEBP", quality=95),
        encoded(picture().convert("CMYK"), "JPEG", quality=95),
        encoded(picture().quantize(256), "PNG"),
    ],
    ids=["jpeg", "webp", "cmyk-jpeg", "palette-png"],
)
def test_lossy_formats_are_close(data):
    pixels = decode_image(data)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - np.asarray(picture())).mean() < 4


def test_grey_becomes_three_equal_channels():
    grey = picture().convert("L")
    expected = np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(decode_image(encoded(grey, "PNG")), expected)


def test_sixteen_bits_become_eight():
    grey = np.asarray(picture().convert("L"))
    data = encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    np.testing.assert_array_equal(decode_image(data)[:, :, 1], grey)


def test_transparent_becomes_white():
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0] = [(10, 20, 30, 255), (10, 20, 30, 0), (100, 200, 0, 51)]
    # 51 is a fifth: 100 / 5 + 255 * 4 / 5 = 224, and so on.
    expected = [[(10, 20, 30), (255, 255, 255), (224, 244, 204)]]
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(pixels), "PNG")), expected)


def test_photographs_stand_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to show"
    pixels = decode_image(encoded(picture(), "JPEG", quality=95, exif=exif))
    expected = np.asarray(picture().transpose(Image.Transpose.ROTATE_270))
    assert pixels.shape == (40, 30, 3)
    assert np.abs(pixels.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_a_pil_picture_gives_what_its_file_gives(mode):
    image = picture().convert("RGBA")
    image.putalpha(picture().convert("L"))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 200)
    else:
        image = image.convert(mode)
    from_file = decode_image(encoded(image, "PNG"))
    np.testing.assert_allclose(to_rgb(image).astype(int), from_file.astype(int), atol=1)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "no known image format.*<html>no"),
        (encoded(picture(), "PNG")[:20], "header|format"),
        (encoded(picture(), "PNG")[:-30], "PNG data is damaged or cut off"),
        (encoded(picture(300, 300), "JPEG")[:3000], "JPEG data is damaged or cut off"),
        (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "float32"),
    ],
    ids=["empty", "html", "header", "png", "jpeg", "float"],
)
def test_a_broken_file_is_named(data, says):
    with pytest.raises(ImageError, match=says):
        decode_image(data)


def test_a_bomb_is_not_decoded(monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 1000)
    with pytest.raises(ImageError, match="40 x 30 pixels, more than 1000"):
        decode_image(encoded(picture(), "PNG"))


def test_crops_keep_to_area_and_ratio():
    rng = np.random.default_rng(0)
    parts = np.array(
        [preprocess.draw_crop(100, 150, rng, (0.3, 0.6), (0.5, 2.0)) for _ in range(500)]
    )
    top, left, h, w = parts.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= 100).all()
    assert (left + w <= 150).all()
    share, shape = h * w / 15_000, w / h
    assert 0.29 < share.min() < 0.32
    assert 0.57 < share.max() < 0.61
    assert 0.48 < shape.min() < 0.6
    assert 1.7 < shape.max() < 2.05
    assert len(np.unique(top)) > 20
    assert len(np.unique(left)) > 20


def test_shapes_and_places_of_crops_are_drawn_evenly():
    rng = np.random.default_rng(0)
    shapes = np.array(
        [preprocess.draw_crop(100, 150, rng, (0.3, 0.3), (0.5, 2.0))[2:] for _ in range(1000)]
    )
    h, w = shapes.T
    # As many upright as lying; a standard deviation is 0.016.
    assert abs(np.mean(w < h) - 0.5) < 0.06
    places = np.array(
        [preprocess.draw_crop(20, 20, rng, (0.25, 0.25), (1.0, 1.0))[:2] for _ in range(500)]
    )
    top, left = places.T
    assert set(top) == set(left) == set(range(11))  # the last place too


def test_evaluation_resizes_the_shorter_side_and_takes_the_middle():
    image = picture(90, 61)
    result = preprocess.resize_center_crop(np.asarray(image), 32)
    # 90 * 32 / 61 = 47.2, so 47 columns, of which round(7.5) = 8 are cut on the left.
    expected = np.asarray(image.resize((47, 32), Image.Resampling.BICUBIC))[:, 8:40]
    np.testing.assert_array_equal(result, expected)
    turned = preprocess.resize_center_crop(np.asarray(image).swapaxes(0, 1), 32)
    np.testing.assert_allclose(turned.astype(int), result.swapaxes(0, 1).astype(int), atol=1)
    square = cv2.resize(np.asarray(image), (32, 32))
    np.testing.assert_array_equal(preprocess.resize_center_crop(square, 32), square)


def test_evaluation_of_a_line_of_pixels_takes_its_middle():
    line = np.zeros((1, 1_000_001, 3), np.uint8)
    line[:, 499_998:500_003] = 255
    result = preprocess.resize_center_crop(line, 8)
    assert result.shape == (8, 8, 3)
    assert result.min() == 255


def test_pil_pictures_of_several_modes_make_one_batch():
    batch = preprocess.images_to_batch([picture(), picture().convert("L"), picture(9, 50)], 16)
    assert batch.shape == (3, 16, 16, 3)
    np.testing.assert_array_equal(
        batch[0], preprocess.resize_center_crop(np.asarray(picture()), 16)
    )


def test_normalised_pixels():
    images = np.zeros((1, 1, 2, 3), np.uint8)
    images[0, 0, 1] = 255
    expected = np.array([[-1.7922626, -1.7520971, -1.4802198], [1.9303361, 2.0748837, 2.1458970]])
    out = jax.jit(preprocess.normalise)(images)
    assert out.dtype == jnp.float32
    chex.assert_trees_all_close(out, expected[None, None].astype(np.float32), atol=1e-6)
