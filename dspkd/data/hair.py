"""Dark hairs in dermatoscopic pictures: where they are, how much they cover, and the picture without them.

A hair is darker than the skin on both sides, thin, and long. So a pixel belongs to one if it lies in a valley of the
grey picture that is no wider than a hair (black-hat), is darker than the median around it (which the gaps in a glare
are not), and if both hold all along a straight line through it in one of sixteen directions. This is DullRazor's idea
(Lee et al., Computers in Biology and Medicine 27, 1997) with a line test in place of its thickness test.

Everything happens at a side of at most `WORKING_SIDE`, and all lengths are shares of the side, so that pictures of one
scene in several resolutions give the same answer. Hairs brighter than the skin are left alone: what finds them finds
gel bubbles and glare as well (`benchmarks/results/hair.md`).
"""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

__all__ = ["hair_cover", "hair_mask", "remove_hair"]

WORKING_SIDE = 256
# Shares of the side.
WIDEST_HAIR, SURROUNDINGS = 7 / 256, 17 / 256
# Somewhere a hair is straight over LONG, everywhere over SHORT.
LONG, SHORT = 25 / 256, 17 / 256
DIRECTIONS = 16
# Grey levels.
CONTRAST = 12
INPAINT_RADIUS = 3


def hair_mask(square: np.ndarray) -> np.ndarray:
    """Where hairs are: RGB uint8 (S, S, 3) -> bool (s, s), s = min(S, WORKING_SIDE)."""
    return _mask(_at_working_side(square))


def hair_cover(mask: np.ndarray) -> float:
    """The share of the square that is hair."""
    return float(mask.mean())


def remove_hair(square: np.ndarray, threshold: float) -> np.ndarray:
    """RGB uint8 (S, S, 3) without its hairs, if they cover more than `threshold` of it; else `square` itself.

    Only pixels on and beside a hair change. They are filled in from around it by Navier-Stokes inpainting (Bertalmio et
    al., CVPR 2001); in pictures larger than WORKING_SIDE from the reduced one, so they are smoother there.
    """
    small = _at_working_side(square)
    mask = _mask(small)
    if hair_cover(mask) <= threshold:
        return square
    # The soft edge of a hair would be painted into the gap.
    with_edges = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8))
    filled: np.ndarray = cv2.inpaint(small, with_edges, INPAINT_RADIUS, cv2.INPAINT_NS)
    if small is square:
        return filled
    side = (square.shape[1], square.shape[0])
    here = np.asarray(Image.fromarray(with_edges * np.uint8(255)).resize(side, Image.Resampling.BILINEAR)) > 0
    return np.where(here[..., None], np.asarray(Image.fromarray(filled).resize(side, Image.Resampling.BICUBIC)), square)


def _at_working_side(square: np.ndarray) -> np.ndarray:
    if len(square) <= WORKING_SIDE:
        return np.ascontiguousarray(square)
    reduced = Image.fromarray(square).resize((WORKING_SIDE, WORKING_SIDE), Image.Resampling.BILINEAR)
    return np.asarray(reduced)


def _mask(picture: np.ndarray) -> np.ndarray:
    side = len(picture)
    # A dark row at the picture's edge is a line, too; repeated outwards it is a wide one.
    border = _odd(SURROUNDINGS * side)
    grey = cv2.copyMakeBorder(
        cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), border, border, border, border, cv2.BORDER_REPLICATE
    )
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_odd(WIDEST_HAIR * side),) * 2)
    depth = np.minimum(
        cv2.morphologyEx(grey, cv2.MORPH_BLACKHAT, disk), cv2.subtract(cv2.medianBlur(grey, border), grey)
    )
    # A pixel more to each side lets the shorter lines bend.
    widened = cv2.dilate(depth, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)))
    lines = np.minimum(_along_lines(widened, SHORT * side), depth) >= CONTRAST
    certain = _along_lines(depth, LONG * side) >= CONTRAST
    count, pieces = cv2.connectedComponents(lines.astype(np.uint8), connectivity=8)
    kept = np.zeros(count, bool)
    kept[pieces[certain]] = True
    kept[0] = False
    mask: np.ndarray = kept[pieces[border:-border, border:-border]]
    return mask


def _along_lines(depth: np.ndarray, length: float) -> np.ndarray:
    """At each pixel the largest depth that is reached all along a line of `length` through it, in any direction."""
    best = np.zeros_like(depth)
    for angle in np.arange(DIRECTIONS) * np.pi / DIRECTIONS:
        np.maximum(best, cv2.morphologyEx(depth, cv2.MORPH_OPEN, _line(length, angle)), out=best)
    return best


def _line(length: float, angle: float) -> np.ndarray:
    reach = int(np.ceil(length / 2))
    element = np.zeros((2 * reach + 1, 2 * reach + 1), np.uint8)
    across, down = ((length - 1) / 2 * np.array([np.cos(angle), np.sin(angle)])).round().astype(int).tolist()
    cv2.line(element, (reach - across, reach - down), (reach + across, reach + down), 1, 1)
    return element


def _odd(length: float) -> int:
    return max(3, 2 * round((length - 1) / 2) + 1)
