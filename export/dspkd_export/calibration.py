"""Real images from which the ranges of int8 activations are read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dspkd.errors import UsageError

__all__ = ["Calibration", "required_for_int8", "stratified_choice"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """`pixels` are uint8 (N, H, W, 3), of the training part: the validation part judges and must not be seen."""

    pixels: np.ndarray
    image_ids: Sequence[str]
    part: str = "train"

    def describe(self) -> dict[str, Any]:
        listed = "\n".join(self.image_ids).encode()
        return {
            "images": len(self.image_ids),
            "part": self.part,
            "image_ids_sha256": hashlib.sha256(listed).hexdigest(),
        }


def required_for_int8(calibration: Calibration | None) -> Calibration:
    """UsageError if there is none."""
    if calibration is None:
        raise UsageError("int8 needs calibration images", hint="give images of the training part")
    return calibration


def stratified_choice(labels: np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
    """Positions (<= count,) of images, every class as often as the others as far as it has images. Sorted, without
    repetition.

    Raises UsageError if `count` is smaller than the number of classes.
    """
    kinds = np.unique(labels)
    if count < len(kinds):
        raise UsageError(
            f"{count} calibration images for {len(kinds)} classes", hint=f"give at least {len(kinds)}, better 256"
        )
    rng = np.random.Generator(np.random.PCG64(seed))
    shuffled = [rng.permutation(np.flatnonzero(labels == kind)) for kind in kinds]
    # Round after round one image of each class, so that a rare class leaves its share to the others.
    rounds = [members[turn] for turn in range(max(map(len, shuffled))) for members in shuffled if turn < len(members)]
    return np.sort(np.array(rounds[:count]))
