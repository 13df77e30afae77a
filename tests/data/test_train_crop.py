"""Crops that are decoded at a scale, beside the same crops of the whole picture."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sklearn.datasets import load_sample_images

from rwkv_jax.data import decode, train_crop
from rwkv_jax.data.decode import ImageError, decode_image
from rwkv_jax.data.preprocess import draw_crop
from rwkv_jax.data.train_crop import decode_train_crop

WHOLE = {"area": (1.0, 1.0), "ratio": (1.0, 1.0)}
PAPER = {"area": (0.7, 1.0), "ratio": (0.8, 1.25)}


def encoded(pixels: np.ndarray, form: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    options = {"quality": 90} | options if form == "JPEG" else options
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def gradient(height: int, width: int) -> np.ndarray:
    """Red says how far right, green how far down, in 1/255."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [255 * (x + 0.5) / width, 255 * (y + 0.5) / height, np.full_like(x, 128.0, float)]
    return np.stack(planes, axis=-1).round().astype(np.uint8)


@pytest.fixture(scope="module")
def photos():
    """Two photographs of 427 x 640 pixels."""
    return [np.ascontiguousarray(image) for image in load_sample_images().images]


def whole_way(data, size, rng, *, area, ratio):
    """Decode all, crop, average: what decoding at a scale stands for."""
    image = decode_image(data)
    top, left, h, w = draw_crop(*image.shape[:2], rng, area, ratio)
    part = image[top : top + h, left : left + w]
    return cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_crop_of_the_whole_is_the_resized_picture(form):
    image = gradient(64, 64)
    crop = decode_train_crop(encoded(image, form), 16, np.random.default_rng(0), **WHOLE)
    blocks = image.reshape(16, 4, 16, 4, 3)  # [64, 64, 3] -> blocks of 4 x 4
    np.testing.assert_allclose(crop, blocks.mean(axis=(1, 3)), atol=0.51 if form == "PNG" else 3)


def test_a_small_png_is_decoded_once_and_crops_as_the_first_time():
    data, other, photo = (encoded(gradient(n, 72), "PNG") for n in (72, 71, 256))
    # A text of 40,000 random bytes, which would be kept with the picture.
    described = PngInfo()
    described.add_text("comment", np.random.default_rng(0).bytes(40_000).hex())
    heavy = encoded(gradient(72, 72), "PNG", pnginfo=described)
    train_crop._decode_small.cache_clear()
    for _ in range(2):
        for each in (data, other, photo, heavy):
            crop = decode_train_crop(each, 32, np.random.default_rng(7), **PAPER)
            expected = whole_way(each, 32, np.random.default_rng(7), **PAPER)
            np.testing.assert_allclose(crop, expected, atol=1)
    kept = train_crop._decode_small.cache_info()
    assert (kept.hits, kept.misses) == (2, 2)  # neither the photograph nor the long text
    with pytest.raises(ImageError, match="damaged"):
        decode_train_crop(data[:200], 32, np.random.default_rng(7), **PAPER)


def test_a_thin_picture_gives_its_middle():
    image = np.zeros((10, 1000, 3), np.uint8)
    image[:, 490:510] = 255
    crop = decode_train_crop(encoded(image, "PNG"), 8, np.random.default_rng(0), **PAPER)
    assert crop.shape == (8, 8, 3)
    assert crop.min() == 255


@pytest.mark.parametrize("size", [(512, 512), (341, 512), (900, 700), (233, 401), (2000, 1500)])
def test_a_scaled_crop_shows_the_part_that_was_drawn(size):
    height, width = size
    data = encoded(gradient(height, width), quality=95, subsampling=0)
    for seed in range(12):
        crop = decode_train_crop(data, 224, np.random.default_rng(seed), **PAPER)
        top, left, h, w = draw_crop(
            height, width, np.random.default_rng(seed), (0.7, 1), (0.8, 1.25)
        )
        ends = crop[112, [4, -5], 0].astype(float) / 255 * width
        np.testing.assert_allclose(ends, left + w * np.array([4.5, 219.5]) / 224, atol=width / 90)
        ends = crop[[4, -5], 112, 1].astype(float) / 255 * height
        np.testing.assert_allclose(ends, top + h * np.array([4.5, 219.5]) / 224, atol=height / 90)


def test_a_scaled_crop_looks_like_one_of_the_whole_picture(photos):
    pairs = []
    for photo in photos:
        for side in (427, 360, 300):
            data = encoded(cv2.resize(photo, (640, side)))
            pairs += [
                [
                    way(data, 224, np.random.default_rng(seed), **PAPER).astype(float)
                    for way in (decode_train_crop, whole_way)
                ]
                for seed in range(4)
            ]
    scaled, whole = np.array(pairs).swapaxes(0, 1)  # [2, n, 224, 224, 3]
    # Brightness and contrast are the pictures', channel by channel, in every single crop.
    np.testing.assert_allclose(scaled.mean(axis=(1, 2)), whole.mean(axis=(1, 2)), atol=0.7)
    np.testing.assert_allclose(scaled.std(axis=(1, 2)), whole.std(axis=(1, 2)), rtol=0.03)
    # Parts are drawn to whole pixels of the scaled picture, so they lie half a pixel apart at most;
    # PIL's bilinear and bicubic filters differ by 3 grey levels, of the pictures' deviation of 70.
    assert np.sqrt(((scaled - whole) ** 2).mean(axis=(1, 2, 3))).max() < 13
    for side in (512, 400, 270):
        data = encoded(cv2.resize(photos[0][:, :427], (side, side)))
        scaled, whole = (
            way(data, 224, np.random.default_rng(0), **WHOLE).astype(float)
            for way in (decode_train_crop, whole_way)
        )
        assert np.sqrt(((scaled - whole) ** 2).mean()) < 7


def test_a_scaled_crop_has_no_frequencies_that_its_size_cannot_hold():
    # Stripes of 2 pixels, at half size grey; a resize that takes single pixels would show some.
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    data = encoded(stripes, quality=95, subsampling=0)
    for seed in range(5):
        crop = decode_train_crop(data, 224, np.random.default_rng(seed), **PAPER)
        assert abs(crop.mean() - 127.5) < 2
        rng = np.random.default_rng(seed)
        top, left, h, w = draw_crop(512, 512, rng, PAPER["area"], PAPER["ratio"])
        plain = cv2.resize(stripes[top : top + h, left : left + w], (224, 224))
        # 127 in the picture; INTER_AREA leaves about 10.
        assert crop.std() < min(25, plain.std() / 1.5)


def test_the_scale_is_the_smallest_that_leaves_enough_pixels(monkeypatch):
    asked = []
    real = train_crop.simplejpeg.decode_jpeg
    monkeypatch.setattr(
        train_crop.simplejpeg,
        "decode_jpeg",
        lambda data, **arguments: asked.append(image := real(data, **arguments)) or image,
    )
    expected = {448: 224, 447: 280, 360: 225, 320: 240, 256: 224, 255: 255, 200: 200, 1792: 224}
    for side, decoded in expected.items():
        data = encoded(gradient(side, side))
        crop = decode_train_crop(data, 224, np.random.default_rng(0), **WHOLE)
        assert crop.shape == (224, 224, 3)
        assert asked[-1].shape[:2] == (decoded, decoded), side


def test_what_is_turned_or_grey_or_cmyk_or_no_jpeg_is_right(photos):
    small = cv2.resize(photos[0], (300, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    upright = Image.Exif()
    upright[0x0110] = "camera"
    files = [
        encoded(small, exif=exif),
        encoded(small, exif=upright),
        encoded(small[:, :, 0]),
        encoded(small, "PNG"),
        encoded(small, "WEBP"),
    ]
    cmyk = io.BytesIO()
    Image.fromarray(small).convert("CMYK").save(cmyk, "JPEG", quality=90)
    for data in [*files, cmyk.getvalue()]:
        crop, whole = (
            way(data, 64, np.random.default_rng(3), **PAPER).astype(float)
            for way in (decode_train_crop, whole_way)
        )
        assert np.abs(crop - whole).mean() < 4


def test_what_is_broken_is_named():
    data = encoded(gradient(300, 300))
    with pytest.raises(ImageError, match="damaged or cut off"):
        decode_train_crop(data[:1500], 224, np.random.default_rng(0), **PAPER)
    with pytest.raises(ImageError, match="header"):
        decode_train_crop(data[:100], 224, np.random.default_rng(0), **PAPER)


def test_a_jpeg_bomb_is_not_decoded(monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 1000)
    monkeypatch.setattr(train_crop, "MAX_PIXELS", 1000)
    with pytest.raises(ImageError, match="300 x 300 pixels, more than 1000"):
        decode_train_crop(encoded(gradient(300, 300)), 224, np.random.default_rng(0), **PAPER)
