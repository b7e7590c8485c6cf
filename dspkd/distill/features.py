"""What methods on feature maps share: two maps of one size, a teacher's map fit for a squared error."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

__all__ = ["layer_normalised", "needs_normalising", "pooled", "resized"]


def needs_normalising(teacher_name: str, wanted: bool | None) -> bool:
    """`wanted`, or if that is None: only for ConvNeXt, whose raw last map has a few huge channels that would decide a
    squared error alone.
    """
    return wanted if wanted is not None else "convnext" in teacher_name


def layer_normalised(features: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the channels of every place: (B, C, H, W) -> the same, in float32."""
    return functional.layer_norm(features.float().movedim(1, -1), features.shape[1:2]).movedim(-1, 1)


def resized(features: Tensor, like: Tensor) -> Tensor:
    """`features` (B, C, H, W) at the height and width of `like`; bilinear, align_corners=False."""
    if features.shape[2:] == like.shape[2:]:
        return features
    return functional.interpolate(features, size=like.shape[2:], mode="bilinear", align_corners=False)


def pooled(features: Tensor) -> Tensor:
    """Global average: (B, C, H, W) -> (B, C)."""
    return features.mean(dim=(2, 3))
