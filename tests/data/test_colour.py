"""Changes of colours against values worked out by hand, and what they draw."""

import colorsys

import numpy as np
import pytest

from rwkv_jax.data.colour import jitter_colour
from rwkv_jax.data.config import ColourConfig


class Fixed:
    """A generator that draws the largest of a range, and 0.5 where it draws from [0, 1]."""

    def uniform(self, low: float, high: float) -> float:
        return high

    def random(self) -> float:
        return 0.5


def flat(*colours: tuple[int, int, int]) -> np.ndarray:
    return np.array([colours], np.uint8)


def test_all_zero_leaves_the_picture_and_draws_nothing():
    picture = flat((10, 20, 30), (200, 100, 0))
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert jitter_colour(picture, ColourConfig(), rng) is picture
    assert rng.bit_generator.state == before


def test_brightness_multiplies_and_clips():
    changed = jitter_colour(flat((100, 50, 0), (200, 10, 4)), ColourConfig(brightness=0.5), Fixed())
    np.testing.assert_array_equal(changed, flat((150, 75, 0), (255, 15, 6)))


def test_contrast_moves_away_from_the_mean_grey():
    # The mean grey is 100: 1.5 * 60 - 50 = 40, 1.5 * 140 - 50 = 160.
    changed = jitter_colour(
        flat((60, 60, 60), (140, 140, 140)), ColourConfig(contrast=0.5), Fixed()
    )
    np.testing.assert_array_equal(changed, flat((40, 40, 40), (160, 160, 160)))


def test_contrast_keeps_the_mean_grey_that_brightness_gave():
    grey, config = flat((100, 100, 100)), ColourConfig(brightness=0.3, contrast=0.6)
    for seed in range(8):
        brightness = np.random.default_rng(seed).uniform(0.7, 1.3)
        changed = jitter_colour(grey, config, np.random.default_rng(seed))
        np.testing.assert_allclose(changed, 100 * brightness, atol=0.51)


def test_saturation_moves_away_from_the_pixels_own_grey():
    # Luma 0.299 * 100 + 0.587 * 50 + 0.114 * 150 = 76.35: 1.5 * 100 - 38.2, and so on.
    changed = jitter_colour(flat((100, 50, 150), (7, 7, 7)), ColourConfig(saturation=0.5), Fixed())
    np.testing.assert_array_equal(changed, flat((112, 37, 187), (7, 7, 7)))


def test_without_colour_all_channels_are_luma():
    changed = jitter_colour(flat((200, 30, 0)), ColourConfig(grey_probability=1.0), Fixed())
    np.testing.assert_array_equal(changed, flat((77, 77, 77)))  # 0.299 * 200 + 0.587 * 30


def test_a_third_of_a_circle_turns_red_into_green_and_keeps_grey():
    third = jitter_colour(flat((255, 0, 0), (90, 90, 90)), ColourConfig(hue=1 / 3), Fixed())
    assert sorted(third[0, 0]) == [0, 0, 255]
    assert third[0, 0, 0] == 0
    np.testing.assert_array_equal(third[0, 1], (90, 90, 90))


def test_a_small_turn_is_that_of_the_colour_circle():
    (pixel,) = jitter_colour(flat((180, 100, 100)), ColourConfig(hue=0.02), Fixed())[0]
    was, now = (colorsys.rgb_to_hsv(*np.array(x) / 255)[0] for x in ((180, 100, 100), pixel))
    assert abs((now - was + 0.5) % 1 - 0.5) == pytest.approx(0.02, abs=0.005)


@pytest.mark.parametrize(
    ("field", "value"),
    [("brightness", -0.1), ("contrast", 1.5), ("hue", 0.6), ("grey_probability", 2.0)],
)
def test_a_value_out_of_range_names_its_field(field, value):
    with pytest.raises(ValueError, match=rf"colour\.{field} = {value}"):
        ColourConfig(**{field: value})
