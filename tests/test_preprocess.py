"""The resize against a float64 triangle filter that shares no code with Pillow, and the cut of the centre square."""

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from dspkd.errors import DataError
from dspkd.preprocess import Preprocess, load_pixels, load_rgb, resize_square


def triangle_weights(source, target):
    """(target, source) float64: a triangle of half-width max(1, source/target) around each output's centre."""
    scale = source / target
    width = max(1.0, scale)
    centres = (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(source) + 0.5 - centres[:, None]) / width
    weights = np.clip(1 - distance, 0, None)
    return weights / weights.sum(1, keepdims=True)


def np_resize(pixels, size):
    across = triangle_weights(pixels.shape[1], size)
    down = triangle_weights(pixels.shape[0], size)
    return np.einsum("ih,hwc,jw->ijc", down, pixels.astype(np.float64), across)


@pytest.mark.parametrize("size", [16, 17, 24, 48, 64])
@pytest.mark.parametrize("side", [16, 23, 48])
def test_resize_golden(side, size):
    pixels = np.random.default_rng(side * 100 + size).integers(0, 256, (side, side, 3), dtype=np.uint8)
    got = resize_square(Image.fromarray(pixels), size, "bilinear")
    assert got.dtype == np.uint8 and got.shape == (size, size, 3)
    # One level: Pillow rounds after each of the two passes, and its weights have fixed-point precision.
    assert np.abs(got - np_resize(pixels, size)).max() <= 1 + 1e-9


def test_large_reductions_are_antialiased():
    """A checkerboard of single pixels must turn grey; a filter of fixed width would keep stripes."""
    board = np.indices((160, 160)).sum(0) % 2 * 255
    pixels = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    got = resize_square(Image.fromarray(pixels), 16, "bilinear").astype(int)
    assert np.abs(got - 127.5).max() <= 3


def test_bicubic_is_another_filter():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    bilinear, bicubic = (resize_square(image, 16, name).astype(int) for name in ("bilinear", "bicubic"))
    assert np.abs(bilinear - bicubic).max() > 3


@pytest.mark.parametrize(("width", "height"), [(30, 20), (20, 30), (31, 20), (20, 31), (20, 20)])
def test_centre_square(width, height):
    """At the square's own size nothing is resampled, so the cut is seen exactly."""
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    got = resize_square(Image.fromarray(pixels), side, "bilinear")
    np.testing.assert_array_equal(got, pixels[top : top + side, left : left + side])


def test_nothing_outside_the_square_leaks_in():
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, :20] = pixels[:, 40:] = 255
    assert resize_square(Image.fromarray(pixels), 16, "bilinear").max() == 0


def test_load_pixels_is_decode_cut_and_resize(tmp_path):
    pixels = np.random.default_rng(2).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    got = load_pixels(tmp_path / "x.png", Preprocess(size=16))
    np.testing.assert_array_equal(got, resize_square(Image.fromarray(pixels), 16, "bilinear"))
    assert np.abs(got - np_resize(pixels[:, 5:35], 16)).max() <= 1 + 1e-9


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "bmp"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "LA", "P", "1"])
def test_every_format_and_colour_is_read(tmp_path, suffix, mode):
    """A picture that is white on top and black below, opaque where it has alpha."""
    pixels = np.repeat(np.array([255] * 8 + [0] * 8, np.uint8)[:, None], 16, axis=1)
    path = tmp_path / f"x.{suffix}"
    picture = Image.fromarray(pixels).convert("RGB" if mode in ("RGBA", "CMYK") else "L").convert(mode)
    try:
        picture.save(path, **({"lossless": True} if suffix == "webp" else {}))
    except OSError:
        pytest.skip(f"{suffix} holds no {mode}")
    for at_least in (None, 16):
        got = np.asarray(load_rgb(path, at_least=at_least)).astype(int)
        assert got.shape == (16, 16, 3)
        assert got[:8].min() >= 250
        assert got[8:].max() <= 5


def test_a_jpeg_may_come_smaller(tmp_path):
    Image.new("RGB", (640, 480), (200, 30, 90)).save(tmp_path / "x.jpg", quality=95)
    small = load_rgb(tmp_path / "x.jpg", at_least=100)
    assert small.size == (160, 120)
    assert np.abs(np.asarray(small).astype(int) - (200, 30, 90)).max() <= 3
    assert load_rgb(tmp_path / "x.jpg", at_least=481).size == load_rgb(tmp_path / "x.jpg").size == (640, 480)


def test_a_missing_picture_is_named(tmp_path):
    with pytest.raises(DataError, match=r"image .*nothing\.png does not exist"):
        load_rgb(tmp_path / "nothing.png")


@pytest.mark.parametrize("wrong", [{"size": 8}, {"crop": "none"}, {"color_order": "BGR"}, {"antialias": False}])
def test_what_no_code_carries_out_cannot_be_written_down(wrong):
    with pytest.raises(ValidationError):
        Preprocess(**wrong)
