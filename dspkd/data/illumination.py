"""Even light: slow changes of brightness over a picture divided out (the "pseudo-shadows" of the paper's introduction).

The light is a parabola over the picture, fitted to the logarithm of its luminance. A lesion is dark and lies in the
middle, where an ordinary fit would take it for a shadow; so pixels well below the fit lose their say, and it is the
skin around that decides (after Cavalcanti and Scharcanski, Computerized Medical Imaging and Graphics 35, 2011, who fit
to the corners). One factor for all three channels keeps the colours.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

__all__ = ["even_light"]

FIT_SIDE = 64
ROUNDS = 12
# Of a natural logarithm: pixels this far below the fit still count half, and brighter ones always do.
TOLERANCE = 0.1
# What lies in black corners or glare is not to be made up.
LARGEST_GAIN = 2.0
GREY = (0.299, 0.587, 0.114)


def even_light(square: np.ndarray) -> np.ndarray:
    """RGB uint8 (S, S, 3) -> the same with its light evened out; the light's mean stays.

    Each pixel is multiplied by a factor from 1 / LARGEST_GAIN to LARGEST_GAIN.
    """
    light = np.exp(_parabola(_fit(square), len(square)))
    gain = np.clip(light.mean() / light, 1 / LARGEST_GAIN, LARGEST_GAIN).astype(np.float32)
    return np.clip(np.rint(square * gain[..., None]), 0, 255).astype(np.uint8)


def _fit(square: np.ndarray) -> np.ndarray:
    """Of 1, x, y, x², xy, y², for x and y from -1 to 1: float64 (6,)."""
    small = np.asarray(Image.fromarray(square).resize((FIT_SIDE, FIT_SIDE), Image.Resampling.BOX), dtype=np.float64)
    seen = np.log(np.maximum(small @ np.array(GREY), 1.0)).ravel()
    terms = np.stack([_parabola(one, FIT_SIDE).ravel() for one in np.eye(6)], axis=1)
    weights = np.ones(len(seen))
    for _ in range(ROUNDS):
        weighted = terms * weights[:, None]
        coefficients = np.linalg.solve(weighted.T @ terms, weighted.T @ seen)
        below = np.maximum(terms @ coefficients - seen, 0.0)
        weights = 1 / (1 + (below / TOLERANCE) ** 2)
    return np.asarray(coefficients)


def _parabola(coefficients: np.ndarray, side: int) -> np.ndarray:
    """float64 (side, side), at pixel centres."""
    x = (np.arange(side) + 0.5) / side * 2 - 1
    y = x[:, None]
    one, across, down, across2, both, down2 = coefficients
    return np.asarray(one + across * x + down * y + across2 * x * x + both * x * y + down2 * y * y)
