"""Pictures that show the same: re-encoded, resized, recoloured a little, mirrored or turned by right angles.

Each picture is reduced to a thumbnail of 32 x 32 pixels and a perceptual hash: the signs of its 63 lowest cosine
coefficients. A mirror image only changes signs of them and a transposition exchanges them, so the hashes of all eight
orientations come from one transform. All pairs of hashes are compared, and the pixels decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["ORIENTATIONS", "THUMBNAIL", "NearDuplicate", "find_near_duplicates", "orient", "perceptual_hashes"]

THUMBNAIL = 32
_LOW = 8
# (transpose, flip vertically, flip horizontally), carried out in this order, and what that is called.
ORIENTATIONS = {
    (False, False, False): "as it is",
    (False, False, True): "mirrored",
    (False, True, False): "upside down and mirrored",
    (False, True, True): "turned by 180 degrees",
    (True, False, False): "turned by 90 degrees and mirrored",
    (True, False, True): "turned by 90 degrees clockwise",
    (True, True, False): "turned by 90 degrees counter-clockwise",
    (True, True, True): "turned by 270 degrees and mirrored",
}
# Of 63 bits. Unrelated pictures differ in about half; with the pixels as judge a generous limit costs only time.
MAX_DISTANCE = 14
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """Pictures number `first` < `second` of those that were compared."""

    first: int
    second: int
    orientation: str
    """What turns the first into the second."""
    similarity: float
    """Correlation of the thumbnails' luminance, at most 1."""


def orient(pixels: np.ndarray, orientation: tuple[bool, bool, bool]) -> np.ndarray:
    """`pixels` (..., H, W, C) in one of `ORIENTATIONS`."""
    transpose, vertical, horizontal = orientation
    if transpose:
        pixels = pixels.swapaxes(-3, -2)
    if vertical:
        pixels = pixels[..., ::-1, :, :]
    return pixels[..., ::-1, :] if horizontal else pixels


def _luminance(thumbnails: np.ndarray) -> np.ndarray:
    """int64 (N, 32, 32), 0 to 65280 (ITU-R 601 in 256ths)."""
    return thumbnails.astype(np.int64) @ np.array([77, 150, 29])


def _cosines() -> np.ndarray:
    """(8, 32) int64: the lowest rows of the DCT-II. Whole numbers, so that every machine gets the same hash."""
    k, x = np.arange(_LOW)[:, None], np.arange(THUMBNAIL)
    return np.rint(4096 * np.cos(np.pi * (x + 0.5) * k / THUMBNAIL)).astype(np.int64)


def perceptual_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """uint8 (N, 32, 32, 3) -> uint64 (8, N): the hash in each of `ORIENTATIONS`, the picture's own first."""
    cosines = _cosines()
    coefficients = cosines @ _luminance(thumbnails) @ cosines.T
    odd = np.arange(_LOW) % 2 == 1
    hashes = []
    for transpose, vertical, horizontal in ORIENTATIONS:
        turned = coefficients.swapaxes(1, 2) if transpose else coefficients
        sign = np.where(odd[:, None] & vertical, -1, 1) * np.where(odd[None, :] & horizontal, -1, 1)
        bits = (turned * sign > 0).reshape(len(thumbnails), -1)
        bits[:, 0] = False  # the mean brightness
        hashes.append(np.packbits(bits, axis=1).view(np.uint64).reshape(-1))
    return np.stack(hashes)


def _candidates(hashes: np.ndarray, progress: Callable[[int, int], None] | None) -> Iterator[tuple[np.ndarray, ...]]:
    """Blocks of (first, second, orientation, distance) with first < second, each pair in its nearest orientation."""
    own, count = hashes[0], hashes.shape[1]
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        nearest = np.full((stop - start, count - start), 255, np.uint8)
        which = np.zeros_like(nearest)
        for k, oriented in enumerate(hashes):
            distance = np.bitwise_count(oriented[start:stop, None] ^ own[None, start:])
            better = distance < nearest
            which[better] = k
            np.minimum(nearest, distance, out=nearest)
        first, second = np.nonzero(nearest <= MAX_DISTANCE)
        kept = first < second
        first, second = first[kept], second[kept]
        yield first + start, second + start, which[first, second], nearest[first, second]
        if progress:
            progress(stop, count)
