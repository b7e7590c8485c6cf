"""JPEGs by OpenCV: the same pixels as Pillow's, or none."""

import io

import numpy as np
import pytest
from PIL import Image

from dspkd.data import quick_jpeg as module
from dspkd.data.quick_jpeg import decode_plain_jpeg
from dspkd.data.shares import side_by_side
from dspkd.preprocess import load_rgb


def picture(height, width):
    """Smooth, with an edge, so that every coefficient counts for something."""
    y, x = np.mgrid[:height, :width]
    channels = [127 + 120 * np.sin(x / 9 + k) * np.cos(y / (7 + k)) for k in range(3)]
    made = np.stack(channels, -1)
    made[height // 3 :, : width // 4, 1] = 250
    return Image.fromarray(made.astype(np.uint8))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("at_least", [None, 1000, 100, 60, 30, 16])
def test_the_same_pixels_at_every_size(tmp_path, subsampling, progressive, at_least):
    path = tmp_path / "x.jpg"
    for height, width in ((256, 341), (133, 130), (251, 127)):
        picture(height, width).save(path, quality=85, subsampling=subsampling, progressive=progressive)
        expected = np.asarray(load_rgb(path, at_least=at_least))
        np.testing.assert_array_equal(decode_plain_jpeg(path, at_least), expected)
        assert min(expected.shape[:2]) >= min(at_least or 1000, height, width)


def test_an_icc_profile_and_a_comment_are_nothing_unusual(tmp_path):
    picture(40, 60).save(tmp_path / "x.JPEG", comment=b"Exif is not kept here", icc_profile=b"x" * 300)
    np.testing.assert_array_equal(decode_plain_jpeg(tmp_path / "x.JPEG", 40), load_rgb(tmp_path / "x.JPEG"))


def jpeg(image, **how):
    content = io.BytesIO()
    image.save(content, "JPEG", **how)
    return content.getvalue()


def with_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(picture(40, 60), exif=exif)


WHOLE = jpeg(picture(40, 60))
FRAME, SCAN = WHOLE.index(b"\xff\xc0"), WHOLE.index(b"\xff\xda")
LEFT_TO_PILLOW = {
    "grey": lambda: jpeg(picture(40, 60).convert("L")),
    "four colours": lambda: jpeg(picture(40, 60).convert("CMYK")),
    "turned": with_orientation,
    "turned, as XMP says": lambda: jpeg(picture(40, 60), xmp=b'<x tiff:Orientation="6"/>'),
    "XMP after the frame": lambda: WHOLE[:SCAN] + b"\xff\xe1\x00\x06http" + WHOLE[SCAN:],
    "half a file": lambda: WHOLE[: len(WHOLE) // 2],
    "no end": lambda: WHOLE[:-2],
    "something after the end": lambda: WHOLE + bytes(7),
    "empty": lambda: b"",
    "the start alone": lambda: WHOLE[:3] + WHOLE[-2:],
    "a web page": lambda: b"<html></html>",
    "no frame": lambda: WHOLE[:FRAME] + WHOLE[-2:],
    "no height": lambda: WHOLE[: FRAME + 5] + bytes(2) + WHOLE[FRAME + 7 :],
    "arithmetic coding": lambda: WHOLE[: FRAME + 1] + b"\xc9" + WHOLE[FRAME + 2 :],
    "a segment of no length": lambda: WHOLE[:4] + bytes(2) + WHOLE[6:],
}


@pytest.mark.parametrize("what", LEFT_TO_PILLOW)
def test_what_is_left_to_pillow(tmp_path, what):
    (tmp_path / "x.jpg").write_bytes(LEFT_TO_PILLOW[what]())
    assert decode_plain_jpeg(tmp_path / "x.jpg", 16) is None


def test_other_names_and_missing_files_are_left_to_pillow(tmp_path):
    picture(40, 60).save(tmp_path / "x.png")
    assert decode_plain_jpeg(tmp_path / "x.png", 16) is None
    assert decode_plain_jpeg(tmp_path / "nothing.jpg", 16) is None
    (tmp_path / "folder.jpg").mkdir()
    assert decode_plain_jpeg(tmp_path / "folder.jpg", 16) is None


def test_a_bomb_is_left_to_pillow(tmp_path, monkeypatch):
    (tmp_path / "x.jpg").write_bytes(WHOLE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 60)
    assert decode_plain_jpeg(tmp_path / "x.jpg", 16) is not None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 60 - 1)
    assert decode_plain_jpeg(tmp_path / "x.jpg", 16) is None


def test_with_a_damaged_byte_it_is_still_what_pillow_makes_of_it(tmp_path):
    path, same = tmp_path / "x.jpg", 0
    for place in range(0, len(WHOLE), 7):
        path.write_bytes(WHOLE[:place] + bytes([WHOLE[place] ^ 0xFF]) + WHOLE[place + 1 :])
        found = decode_plain_jpeg(path)
        if found is not None:
            np.testing.assert_array_equal(found, load_rgb(path))
            same += 1
    assert same > 20


def test_an_opencv_that_decodes_otherwise_is_not_used(tmp_path, monkeypatch):
    (tmp_path / "x.jpg").write_bytes(WHOLE)
    real = module.cv2.imdecode
    module._same_as_pillow.cache_clear()
    try:
        monkeypatch.setattr(module.cv2, "imdecode", lambda *given: real(*given) ^ 1)
        assert decode_plain_jpeg(tmp_path / "x.jpg") is None
    finally:
        module._same_as_pillow.cache_clear()
    monkeypatch.undo()
    assert decode_plain_jpeg(tmp_path / "x.jpg") is not None


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 100])
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_shares_are_everything_once_and_side_by_side(count, threads):
    teams = list(side_by_side(range(count), threads))
    assert sorted(i for team in teams for share in team for i in share) == list(range(count))
    for team in teams:
        assert 1 <= len(team) <= threads and all(1 <= len(share) <= 8 for share in team)
        together = sorted(i for share in team for i in share)
        assert together == list(range(together[0], together[-1] + 1))
