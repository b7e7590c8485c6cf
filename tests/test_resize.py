"""The written specification of the resize is enough to repeat it: in numpy, in C, and against Pillow's bytes."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from golden.make_resize import TARGET, as_text, picture, sha256, vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dspkd.preprocess import load_rgb, resize_square
from dspkd.resize import center_square, fixed_point_weights, resize_reference

ROOT = Path(__file__).resolve().parents[1]
VECTORS = json.loads(TARGET.read_text(encoding="utf-8"))["vectors"]
INTERPOLATIONS = ("bilinear", "bicubic")


def case(vector):
    return f"{vector['width']}x{vector['height']}-{vector['size']}-{vector['interpolation']}"


def test_the_golden_vectors_are_what_pillow_gives_now():
    assert TARGET.read_text(encoding="utf-8") == as_text(vectors())


@pytest.mark.parametrize("vector", VECTORS, ids=case)
def test_the_reference_gives_the_golden_bytes(vector):
    source = picture(vector["width"], vector["height"], vector["seed"])
    assert sha256(source) == vector["source_sha256"]
    result = resize_reference(source, vector["size"], vector["interpolation"])
    assert result.shape == (vector["size"], vector["size"], 3)
    assert result.ravel()[:24].tolist() == vector["first"]
    assert sha256(result) == vector["sha256"]


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(1, 90),
    interpolation=st.sampled_from(INTERPOLATIONS),
    extreme=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_the_reference_is_pillow_bit_for_bit(width, height, size, interpolation, extreme, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if extreme:  # black beside white, where bicubic overshoots and has to be clipped
        pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)
    expected = resize_square(Image.fromarray(pixels), size, interpolation)
    np.testing.assert_array_equal(resize_reference(pixels, size, interpolation), expected)


@pytest.fixture(scope="module")
def c_program(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("c") / "resize"
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
    subprocess.run([compiler, *flags, str(ROOT / "tests/golden/resize.c"), "-o", str(program)], check=True)
    return program


def test_c_gives_the_golden_bytes(c_program):
    for vector in VECTORS:
        arguments = [str(vector[key]) for key in ("width", "height", "seed", "size", "interpolation")]
        done = subprocess.run([c_program, *arguments], capture_output=True, check=True)
        result = np.frombuffer(done.stdout, np.uint8)
        assert sha256(result) == vector["sha256"], f"{case(vector)}: {result[:24].tolist()}"


def test_the_vectors_would_notice_what_is_easily_got_wrong():
    """Each of these is a plausible mistake; all of them together would not be seen in a picture."""

    def hits(change):
        return any(
            sha256(change(picture(v["width"], v["height"], v["seed"]), v["size"], v["interpolation"])) != v["sha256"]
            for v in VECTORS
        )

    def columns_first(pixels, size, interpolation):
        return resize_reference(pixels.transpose(1, 0, 2), size, interpolation).transpose(1, 0, 2)

    def odd_pixel_first(pixels, size, interpolation):
        return resize_reference(pixels[::-1, ::-1], size, interpolation)[::-1, ::-1]

    def other_filter(pixels, size, interpolation):
        return resize_reference(pixels, size, "bilinear" if interpolation == "bicubic" else "bicubic")

    assert not hits(resize_reference)
    assert hits(columns_first) and hits(odd_pixel_first) and hits(other_filter)


def test_the_worked_example_of_the_specification():
    text = (ROOT / "export/preprocessing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([01]) \| [\d.]+ \| (\d) \| \d \| [\d., ]+ \| ([\d, ]+) \|$", text, re.MULTILINE)
    written = [(int(first), [int(weight) for weight in weights.split(", ")]) for _, first, weights in rows]
    assert written == fixed_point_weights(5, 2, "bilinear")
    line = np.array([10, 20, 40, 80, 160], np.uint8)
    sums = re.findall(r"= (\d+) >> 22 = (\d+)$", text, re.MULTILINE)
    assert [(int(total), int(value)) for total, value in sums] == [
        (total := 2**21 + int(line[first : first + len(w)].astype(int) @ w), total >> 22) for first, w in written
    ]
    square = np.broadcast_to(line[None, :, None], (5, 5, 3)).astype(np.uint8)
    expected = [int(value) for _, value in sums]
    assert resize_square(Image.fromarray(square), 2, "bilinear")[0, :, 0].tolist() == expected
    cubic = [weights for _, weights in fixed_point_weights(5, 2, "bicubic")]
    assert cubic[0] == cubic[1][::-1]
    assert ", ".join(map(str, cubic[0])) in " ".join(text.split())


@pytest.mark.parametrize(("width", "height", "left", "top"), [(7, 4, 1, 0), (4, 7, 0, 1), (5, 5, 0, 0), (1, 9, 0, 4)])
def test_centre_square(width, height, left, top):
    pixels = picture(width, height, 52)
    side = min(width, height)
    np.testing.assert_array_equal(center_square(pixels), pixels[top : top + side, left : left + side])


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_weights_read_only_what_is_there(size, interpolation):
    rows = fixed_point_weights(40, size, interpolation)
    assert len(rows) == size
    for first, weights in rows:
        assert first >= 0 and first + len(weights) <= 40
        assert abs(sum(weights) - 2**22) <= len(weights)
        assert 255 * sum(abs(weight) for weight in weights) + 2**21 < 2**31


@pytest.mark.parametrize(
    ("pixels", "size", "interpolation"),
    [
        (np.zeros((4, 4), np.uint8), 2, "bilinear"),
        (np.zeros((4, 4, 4), np.uint8), 2, "bilinear"),
        (np.zeros((4, 4, 3), np.float32), 2, "bilinear"),
        (np.zeros((0, 4, 3), np.uint8), 2, "bilinear"),
        (np.zeros((4, 4, 3), np.uint8), 0, "bilinear"),
        (np.zeros((4, 4, 3), np.uint8), 2, "nearest"),
    ],
)
def test_what_is_no_picture_is_refused(pixels, size, interpolation):
    with pytest.raises(ValueError, match=r"expected uint8|cannot resize|unknown interpolation"):
        resize_reference(pixels, size, interpolation)


def grid():
    """Every pair of two bytes, as two (256, 256) arrays."""
    return np.meshgrid(np.arange(256), np.arange(256), indexing="ij")


def test_alpha_goes_over_white_as_specified(tmp_path):
    value, alpha = grid()
    Image.fromarray(np.stack([value] * 3 + [alpha], -1).astype(np.uint8)).save(tmp_path / "x.png")
    expected = (value * alpha + 255 * (255 - alpha) + 127) // 255
    np.testing.assert_array_equal(np.asarray(load_rgb(tmp_path / "x.png"))[..., 1], expected)


def test_cmyk_becomes_rgb_as_specified(tmp_path):
    ink, black = grid()
    data = np.stack([ink, ink.T, 255 - ink, black], -1).astype(np.uint8)
    Image.frombytes("CMYK", (256, 256), data.tobytes()).save(tmp_path / "x.tif")
    expected = ((255 - data[..., :3].astype(int)) * (255 - black[..., None]) + 127) // 255
    np.testing.assert_array_equal(np.asarray(load_rgb(tmp_path / "x.tif")), expected)


@pytest.mark.parametrize(
    ("value", "turned"),
    [
        (1, lambda p: p),
        (2, lambda p: p[:, ::-1]),
        (3, lambda p: p[::-1, ::-1]),
        (4, lambda p: p[::-1]),
        (5, lambda p: p.transpose(1, 0, 2)),
        (6, lambda p: p[::-1].transpose(1, 0, 2)),
        (7, lambda p: p[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda p: p.transpose(1, 0, 2)[::-1]),
    ],
)
def test_orientation_as_specified(value, turned, tmp_path):
    pixels = picture(6, 4, 14)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = value
    image.save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(load_rgb(tmp_path / "x.png")), turned(pixels))
