"""Pictures that show the same: re-encoded, resized, recoloured a little, mirrored or turned by right angles.

Each picture is reduced to a thumbnail of 32 x 32 pixels and a perceptual hash: the signs of its 63 lowest cosine
coefficients. A mirror image only changes signs of them and a transposition exchanges them, so the hashes of all eight
orientations come from one transform. All pairs of hashes are compared, and the pixels decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
# Measured on 12 119 dermatoscopic images of 256 px. Copies saved as JPEG at quality 30, at 60 % of their size, or with
# a fifth more brightness, less contrast or less colour: at most 4 of 63 bits differ, and the correlations are at least
# 0.98 and 0.91. Pictures of different lesions never reach 0.95 and 0.85 together.
MAX_DISTANCE = 9
MIN_SIMILARITY = 0.95
MIN_DETAIL_SIMILARITY = 0.88
_BLOCK = 512
_PAIRS_AT_ONCE = 4096


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
    """Blocks of (first, second, orientation) with first < second, each pair in its nearest orientation."""
    own, count = hashes[0], hashes.shape[1]
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        nearest = np.full((stop - start, count - start), MAX_DISTANCE + 1, np.uint8)
        which = np.zeros_like(nearest)
        for k, oriented in enumerate(hashes):
            distance = np.bitwise_count(oriented[start:stop, None] ^ own[None, start:])
            better = distance < nearest
            which[better] = k
            np.minimum(nearest, distance, out=nearest)
        first, second = np.nonzero(nearest <= MAX_DISTANCE)
        kept = first < second
        first, second = first[kept], second[kept]
        yield first + start, second + start, which[first, second]
        if progress:
            progress(stop, count)


def find_near_duplicates(
    thumbnails: np.ndarray, *, progress: Callable[[int, int], None] | None = None
) -> list[NearDuplicate]:
    """uint8 (N, 32, 32, 3) -> every pair that shows the same picture, in ascending order.

    Two photographs of one lesion are none, nor are a picture and a crop of it, and pictures of a single colour never
    are.
    """
    # All pictures without content have the same hash.
    told = np.flatnonzero(_luminance(thumbnails).std(axis=(1, 2)) > 256)
    if not len(told):
        return []
    thumbnails = thumbnails[told]
    found = []
    for first, second, which in _candidates(perceptual_hashes(thumbnails), progress):
        for k, (flags, name) in enumerate(ORIENTATIONS.items()):
            chosen = np.flatnonzero(which == k)
            for start in range(0, len(chosen), _PAIRS_AT_ONCE):
                part = chosen[start : start + _PAIRS_AT_ONCE]
                i, j = first[part], second[part]
                similarity = _similarity(orient(thumbnails[i], flags), thumbnails[j])
                for n in np.flatnonzero(similarity):
                    pair = NearDuplicate(int(told[i[n]]), int(told[j[n]]), name, float(similarity[n]))
                    found.append(pair)
    return sorted(found, key=lambda pair: (pair.first, pair.second))


def _similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Correlation of each pair's luminance (M,); 0 where that or the correlation of the details is too low.

    The details are what is left without the surroundings of each pixel. All dermatoscopic pictures look alike without
    them: something dark in the middle of skin, inside a black circle.
    """
    a, b = (_luminance(x).astype(np.float32) for x in (one, other))
    similarity = _correlation(a, b)
    details = _correlation(a - _blurred(a), b - _blurred(b))
    return np.where((similarity >= MIN_SIMILARITY) & (details >= MIN_DETAIL_SIMILARITY), similarity, 0.0)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(M, 32, 32) twice -> (M,)"""
    a, b = (x.reshape(len(x), -1) - x.mean(axis=(1, 2))[:, None] for x in (a, b))
    return (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1) + 1e-6)


def _blurred(luminance: np.ndarray) -> np.ndarray:
    """Mean over 5 x 5 pixels."""
    side = luminance.shape[1]
    padded = np.pad(luminance, ((0, 0), (2, 2), (2, 2)), mode="edge")
    rows = np.sum([padded[:, k : k + side] for k in range(5)], axis=0)
    return np.asarray(np.sum([rows[:, :, k : k + side] for k in range(5)], axis=0) / 25)
