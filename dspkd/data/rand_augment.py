"""The paper's RandAugment (section 4.1): 1 to 3 of fourteen operations at random, for classes with few images.

The paper names the operations and no magnitudes. Ranges are those of RandAugment as torchvision has it, of which
`magnitude` takes a share. Shears and shifts mirror the border, so that no black edges come in.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

__all__ = ["OPERATIONS", "rand_augment", "rare_classes"]


def _moved(
    image: Tensor, *, turn: float = 0.0, shift: tuple[float, float] = (0, 0), shear: tuple[float, float] = (0, 0)
) -> Tensor:
    """Angles in degrees, shifts in pixels."""
    border = image.shape[-1] // 2
    padded = transforms.pad(image, [border], padding_mode="reflect")
    moved = transforms.affine(
        padded, turn, [round(s) for s in shift], 1.0, list(shear), interpolation=InterpolationMode.BILINEAR
    )
    return moved[..., border:-border, border:-border]


def _degrees(tangent: float) -> float:
    return float(np.degrees(np.arctan(tangent)))


# Each takes the picture and a number in [-1, 1]; what only knows one direction takes its absolute value.
OPERATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda image, _: image,
    "auto_contrast": lambda image, _: transforms.autocontrast(image),
    "equalize": lambda image, _: transforms.equalize(image),
    "rotate": lambda image, m: _moved(image, turn=30 * m),
    "solarize": lambda image, m: transforms.solarize(image, 255.0 * (1 - abs(m))),
    "color": lambda image, m: transforms.adjust_saturation(image, 1 + 0.9 * m),
    "posterize": lambda image, m: transforms.posterize(image, 8 - round(4 * abs(m))),
    "contrast": lambda image, m: transforms.adjust_contrast(image, 1 + 0.9 * m),
    "brightness": lambda image, m: transforms.adjust_brightness(image, 1 + 0.9 * m),
    "sharpness": lambda image, m: transforms.adjust_sharpness(image, 1 + 0.9 * m),
    "shear_x": lambda image, m: _moved(image, shear=(_degrees(0.3 * m), 0.0)),
    "shear_y": lambda image, m: _moved(image, shear=(0.0, _degrees(0.3 * m))),
    "translate_x": lambda image, m: _moved(image, shift=(150 / 331 * image.shape[-1] * m, 0.0)),
    "translate_y": lambda image, m: _moved(image, shift=(0.0, 150 / 331 * image.shape[-1] * m)),
}


def rand_augment(image: Tensor, numbers: np.ndarray, magnitude: float) -> Tensor:
    """uint8 (3, H, W) -> the same, after the operations that `numbers`, seven in [0, 1), choose: how many, and a
    kind and a strength for each of up to three. Strengths are uniform in [-magnitude, magnitude].
    """
    names = list(OPERATIONS)
    for kind, strength in numbers[1:].reshape(3, 2)[: 1 + int(3 * numbers[0])]:
        operation = OPERATIONS[names[int(len(names) * kind)]]
        image = operation(image, magnitude * (2.0 * float(strength) - 1.0))
    return image


def rare_classes(labels: np.ndarray) -> np.ndarray:
    """Classes with fewer images than the average class: what the paper calls underrepresented."""
    present, counts = np.unique(labels, return_counts=True)
    return present[counts < counts.mean()]


def rand_augment_batch(images: Tensor, chosen: np.ndarray, numbers: np.ndarray, magnitude: float) -> Tensor:
    """uint8 (B, 3, H, W), changed in place at the positions `chosen`; `numbers` (B, 7)."""
    for i in chosen:
        images[int(i)] = rand_augment(images[int(i)].contiguous(), numbers[i], magnitude)
    return images
