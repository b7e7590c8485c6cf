"""What each precision must hold for its certificate to pass."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BOUNDS", "DEFAULT_MARGIN", "Bound"]

DEFAULT_MARGIN = 0.01
"""Balanced accuracy that a deployed model may lose against PyTorch."""


@dataclass(frozen=True, slots=True)
class Bound:
    top1_agreement: float
    """Least share of images whose top-1 class is PyTorch's."""
    max_abs_difference: float | None
    """Largest difference of a probability from PyTorch's; None: judged by its accuracy alone."""
    golden: float
    """Largest difference of a golden answer when the same file runs on another machine."""


BOUNDS: dict[str, Bound] = {
    "fp32": Bound(1.0, 1e-4, golden=1e-4),
    "fp16": Bound(0.995, 1e-2, golden=1e-2),
    # Eight bits move probabilities near a decision; whether that costs anything is what the margin asks. The golden
    # tolerance leaves room for kernels that round a half the other way.
    "int8": Bound(0.0, None, golden=5e-2),
}
