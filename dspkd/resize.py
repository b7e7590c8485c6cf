"""The resize of `dspkd.preprocess` a second time, in integers and without Pillow.

It follows `export/preprocessing.md` line by line and is there to show that what is written there is enough: a third
implementation, on a phone or a board, that follows it too gets the same bytes. dspkd itself resizes with Pillow, which
is faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

__all__ = ["center_square", "fixed_point_weights", "resize_reference"]

PRECISION = 22
"""Binary places of a weight. A sum of 8-bit values times weights then fits a signed 32-bit integer."""


def _triangle(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _cubic(x: float) -> float:
    a, x = -0.5, abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    if x < 2.0:
        return (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return 0.0


# The filter and how far it reaches to either side.
_FILTERS: dict[str, tuple[Callable[[float], float], float]] = {"bilinear": (_triangle, 1.0), "bicubic": (_cubic, 2.0)}


def center_square(pixels: np.ndarray) -> np.ndarray:
    """The largest centred square of (H, W, 3), as a view. An odd pixel is left over at the right or at the bottom."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def resize_reference(pixels: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """The centre square of uint8 (H, W, 3) as uint8 (size, size, 3), antialiased.

    `interpolation` is `bilinear` or `bicubic`. Source: export/preprocessing.md. Raises ValueError for other arrays and
    other interpolations.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ValueError(f"expected uint8 (H, W, 3), got {pixels.dtype} {pixels.shape}")
    square = center_square(pixels)
    if len(square) == size:
        return square.copy()
    weights = fixed_point_weights(len(square), size, interpolation)
    across = _resize_rows(square, weights)
    return _resize_rows(across.transpose(1, 0, 2), weights).transpose(1, 0, 2).copy()


def fixed_point_weights(source: int, target: int, interpolation: str) -> list[tuple[int, list[int]]]:
    """For each of `target` pixels: the first of `source` pixels that it reads, and the weight of that and of those that
    follow, times 2**22.
    """
    if interpolation not in _FILTERS:
        raise ValueError(f"unknown interpolation {interpolation!r}; known: {', '.join(_FILTERS)}")
    if source < 1 or target < 1:
        raise ValueError(f"cannot resize {source} pixels to {target}")
    function, reach = _FILTERS[interpolation]
    scale = source / target
    stretch = max(scale, 1.0)
    shrink, support = 1.0 / stretch, reach * stretch
    rows = []
    for index in range(target):
        centre = (index + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        end = min(int(centre + support + 0.5), source)
        values = [function((place - centre + 0.5) * shrink) for place in range(first, end)]
        # One after the other: a sum in another order has other last bits.
        total = 0.0
        for value in values:
            total += value
        rows.append((first, [_round_away(value / total * 2**PRECISION) for value in values]))
    return rows


def _round_away(x: float) -> int:
    """Nearest integer, halves away from zero."""
    return math.trunc(x - 0.5 if x < 0 else x + 0.5)


def _resize_rows(pixels: np.ndarray, weights: list[tuple[int, list[int]]]) -> np.ndarray:
    """uint8 (rows, columns, 3) with its columns resized."""
    result = np.empty((len(pixels), len(weights), 3), np.uint8)
    for index, (first, row) in enumerate(weights):
        read = pixels[:, first : first + len(row)].astype(np.int32)
        total = np.einsum("rkc,k->rc", read, np.array(row, np.int32)) + (1 << (PRECISION - 1))
        result[:, index] = np.clip(total >> PRECISION, 0, 255)
    return result
