"""JPEGs by OpenCV, which does all of it without Python's lock: threads that decode need not wait for each other.

Pillow stays what decides about every other file, and about every JPEG with something unusual in it. For plain ones the
pixels are the same: both use libjpeg-turbo, with the same settings. Where a build of either does not, which a process
finds out once, Pillow decodes everything.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

__all__ = ["decode_plain_jpeg"]

_SUFFIXES = frozenset({".jpg", ".jpeg"})
_START, _END = b"\xff\xd8\xff", b"\xff\xd9"
# Markers of ITU-T T.81, table B.1: frames that every decoder knows (baseline, extended, progressive), other frames, the
# start of a scan and the end. That Exif and XMP are kept in APP1 is a convention.
_USUAL_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_OTHER_FRAMES = frozenset({0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_SCAN, _STOP, _APP1, _FILL = 0xDA, 0xD9, 0xE1, 0xFF
_REDUCED = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
}


def decode_plain_jpeg(path: Path, at_least: int | None = None) -> np.ndarray | None:
    """uint8 (H, W, 3) RGB, bit for bit what Pillow makes of the file. With `at_least` at the smallest of its sizes (1,
    1/2, 1/4, 1/8) of which both sides have that many pixels.

    None, and no error, if the file is no whole JPEG of three colours with 8 bits, has Exif or XMP (it may have to be
    turned) or more pixels than Pillow allows.
    """
    if path.suffix.lower() not in _SUFFIXES or not _same_as_pillow():
        return None
    try:
        content = path.read_bytes()
    except OSError:
        return None
    # A decoder makes a picture of half a file, too; without its end Pillow has to say what is wrong.
    if not (content.startswith(_START) and content.endswith(_END)) or (size := _plain_size(content)) is None:
        return None
    width, height = size
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        return None
    enough = min(size) if at_least is None else at_least
    reduction = next((r for r in _REDUCED if r <= min(size) // enough), 1)
    pixels = _decoded(content, reduction)
    expected = (-(-height // reduction), -(-width // reduction), 3)
    return pixels if pixels is not None and pixels.shape == expected else None


def _decoded(content: bytes, reduction: int) -> np.ndarray | None:
    # The names of reduced sizes have a bit for the order of colours that is the other way round.
    flags = cv2.IMREAD_COLOR_RGB | (_REDUCED[reduction] & ~cv2.IMREAD_COLOR_BGR if reduction > 1 else 0)
    try:
        pixels: np.ndarray | None = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:
        return None
    return pixels


@lru_cache(maxsize=1)
def _same_as_pillow() -> bool:
    """Whether this OpenCV and this Pillow give the same pixels, in every way that JPEGs of three colours are made."""
    across, down = np.meshgrid(np.linspace(0, 40, 75), np.linspace(0, 30, 53))
    waves = np.stack([np.sin(across), np.cos(down), np.sin(across * down / 50)], axis=-1)
    picture = Image.fromarray((127 + 120 * waves).astype(np.uint8))
    for subsampling in (0, 1, 2):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=80, subsampling=subsampling, progressive=subsampling == 1)
        for reduction in (1, *_REDUCED):
            with Image.open(file) as opened:
                opened.draft(None, (opened.width // reduction, opened.height // reduction))
                expected = np.asarray(opened.convert("RGB"))
            decoded = _decoded(file.getvalue(), reduction)
            if decoded is None or not np.array_equal(decoded, expected):
                return False
    return True


def _plain_size(content: bytes) -> tuple[int, int] | None:
    """Width and height from the frame's header, if nothing before the first scan speaks against OpenCV."""
    place, size = 2, None
    while place + 10 <= len(content) and content[place] == _FILL:
        marker = content[place + 1]
        if marker == _FILL:
            place += 1
            continue
        if marker == _SCAN:
            return size
        length = int.from_bytes(content[place + 2 : place + 4], "big")
        if marker in _USUAL_FRAMES:
            bits, colours = content[place + 4], content[place + 9]
            height, width = (int.from_bytes(content[place + at : place + at + 2], "big") for at in (5, 7))
            if size is not None or bits != 8 or colours != 3 or not width or not height:
                return None
            size = width, height
        if marker in _OTHER_FRAMES or marker in (_STOP, _APP1) or length < 2:
            return None
        place += 2 + length
    return None
