"""Hierarchical fusion (HF): where the teacher looks, fused from four of its levels (paper section 3.2.2, figure 3,
eq. 3).

This is the parameter-free reading; `hf_convolutional` has the other. The mask is a hard threshold, which lets no
gradient pass, so convolutions inside it could never learn from the distillation loss; they would stay at their random
initial values (DECISIONS.md, reading 2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dspkd.distill.generation import uniform_numbers

__all__ = ["channel_attention", "hf_attention", "hf_mask", "shuffled_mask", "spatial_energy"]

CHANNEL_TEMPERATURE = 0.5


def channel_attention(features: Tensor) -> Tensor:
    """w = C softmax(GAP|F| / 0.5): (B, C, H, W) -> (B, C, 1, 1), mean 1 over the channels (after FGD, CVPR 2022)."""
    squeezed = features.abs().mean(dim=(2, 3))
    weights = torch.softmax(squeezed / CHANNEL_TEMPERATURE, dim=1) * features.shape[1]
    return weights[:, :, None, None]


def spatial_energy(features: Tensor) -> Tensor:
    """P = mean_c |w ⊙ F|, scaled to mean 1 over each image: (B, C, H, W) -> (B, 1, H, W).

    The scaling is ours: the levels' magnitudes differ by an order, and without it the largest one would decide alone.
    """
    energy = (channel_attention(features) * features).abs().mean(dim=1, keepdim=True)
    return energy / energy.mean(dim=(2, 3), keepdim=True).clamp_min(1e-12)


@torch.no_grad()
def hf_attention(levels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """The HF attention map A^HF: maps of strides 4, 8, 16, 32 -> (B, 1, *size) with mean 1 over each image.

    From the deepest level up, Q_n = (P_n + Up(Q_{n+1})) / 2 (bilinear, align_corners=False); Q_1 is average-pooled to
    `size`. Computed in float32.
    """
    fused = spatial_energy(levels[-1].float())
    for features in reversed(levels[:-1]):
        shallower = spatial_energy(features.float())
        deeper = functional.interpolate(fused, size=shallower.shape[2:], mode="bilinear", align_corners=False)
        fused = 0.5 * shallower + 0.5 * deeper
    pooled = functional.adaptive_avg_pool2d(fused, size)
    return pooled / pooled.mean(dim=(2, 3), keepdim=True).clamp_min(1e-12)


@torch.no_grad()
def hf_mask(
    attention: Tensor, *, threshold: float, hide: str = "important", hidden_fraction: float | None = None
) -> Tensor:
    """M^HF of eq. 3: 0 where a place is hidden from the student, 1 elsewhere; same shape as `attention` (B, 1, H, W).

    hide="important" hides A >= threshold (φ; 1.0 means "above the image's average"); hide="unimportant" is the opposite
    polarity. With `hidden_fraction` (ρ) exactly round(ρ H W) places of each image are hidden instead, most (or least)
    important first.
    """
    order = attention if hide == "important" else -attention
    if hidden_fraction is None:
        hidden = attention >= threshold if hide == "important" else attention < threshold
        return (~hidden).to(attention.dtype)
    flat = order.flatten(1)
    count = round(hidden_fraction * flat.shape[1])
    mask = torch.ones_like(flat)
    mask.scatter_(1, flat.argsort(dim=1, descending=True, stable=True)[:, :count], 0.0)
    return mask.view_as(attention)


@torch.no_grad()
def shuffled_mask(mask: Tensor) -> Tensor:
    """As many places of each image hidden as in `mask` (B, 1, H, W), at random ones: the control for where HF looks."""
    flat = mask.flatten(1)
    order = uniform_numbers((flat.shape[0], flat.shape[1])).argsort(dim=1).to(mask.device)
    return flat.gather(1, order).view_as(mask)
