"""Shadows over a synthetic lesion are evened out; the lesion and its colours stay."""

import numpy as np
import pytest
from PIL import Image

from dspkd.cleaning import Cleaning
from dspkd.data.illumination import LARGEST_GAIN, even_light
from dspkd.preprocess import Preprocess, load_pixels

SIDE = 160
AXIS = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1


def lesion(radius=0.45):
    """Even skin with a dark disk in the middle."""
    inside = np.hypot(AXIS, AXIS[:, None])[..., None] < radius
    return np.where(inside, np.array([90, 55, 45]), np.array([205, 160, 140])).astype(np.uint8)


def shaded(picture, heading=0.7, strength=0.4):
    light = 1 - strength * (0.5 + (AXIS * np.cos(heading) + AXIS[:, None] * np.sin(heading)) / 2.9)
    return np.rint(picture * light[..., None]).astype(np.uint8)


def unevenness(picture):
    """Of the skin: standard deviation of the logarithm of red."""
    return np.log(picture[np.hypot(AXIS, AXIS[:, None]) > 0.6][:, 0].astype(float)).std()


@pytest.mark.parametrize("heading", [0.0, 0.7, 2.0, 4.0])
@pytest.mark.parametrize("radius", [0.2, 0.45])
def test_a_shadow_is_evened_out(heading, radius):
    dark = shaded(lesion(radius), heading)
    after = even_light(dark)
    assert unevenness(dark) > 0.08
    assert unevenness(after) < 0.25 * unevenness(dark)


@pytest.mark.parametrize("radius", [0.2, 0.45])
def test_the_lesion_is_no_shadow(radius):
    picture = lesion(radius)
    after = even_light(picture).astype(float)
    contrast = [image[SIDE // 2, SIDE // 2] / image[0, 0] for image in (picture.astype(float), after)]
    np.testing.assert_allclose(contrast[1], contrast[0], rtol=0.12)


def test_colours_stay():
    dark = shaded(lesion())
    ratio = [image[..., 0] / image[..., 2] for image in (dark.astype(float), even_light(dark).astype(float))]
    np.testing.assert_allclose(ratio[1], ratio[0], rtol=0.05)


@pytest.mark.parametrize("level", [0, 1, 90, 255])
def test_an_even_picture_stays_as_it_is(level):
    picture = np.full((40, 40, 3), level, np.uint8)
    np.testing.assert_array_equal(even_light(picture), picture)


def test_what_is_black_is_not_made_up():
    """The corners of a round field of view."""
    picture = lesion()
    picture[np.hypot(AXIS, AXIS[:, None]) > 1.1] = 3
    after = even_light(picture)
    assert after[0, 0].max() <= 3 * LARGEST_GAIN
    assert unevenness(after[:, :]) >= 0
    skin = after[SIDE // 2, 20:30].astype(float)
    np.testing.assert_allclose(skin.mean(0), [205, 160, 140], rtol=0.1)


def test_the_same_at_every_resolution():
    large = shaded(np.asarray(Image.fromarray(lesion()).resize((SIDE, SIDE))))
    twice = np.asarray(Image.fromarray(large).resize((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC))
    half = np.asarray(Image.fromarray(even_light(twice)).resize((SIDE, SIDE), Image.Resampling.BOX))
    assert np.abs(half.astype(int) - even_light(large)).mean() < 2


def test_as_part_of_preprocessing(tmp_path):
    Image.fromarray(shaded(lesion())).save(tmp_path / "x.png")
    off, on = (
        load_pixels(tmp_path / "x.png", Preprocess(size=SIDE, cleaning=Cleaning(illumination=wanted)))
        for wanted in (False, True)
    )
    np.testing.assert_array_equal(off, shaded(lesion()))
    np.testing.assert_array_equal(on, even_light(off))
