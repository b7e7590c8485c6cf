"""The HF module with 1x1 convolutions and fusion weights, as the DSP-KD paper's text and figure 3 have it.

The distillation loss cannot train it, because the mask is a hard threshold. So it is either fitted beforehand to the
labels, on the frozen teacher (`hf_fit`; the recipe of MasKD, ICLR 2023), or left at its random initial values, which is
what a straight port of the paper would do without saying so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from dspkd.distill.hf_attention import channel_attention

__all__ = ["WIDTH", "ConvolutionalHF"]

WIDTH = 256
"""Channels d of the fused map; the paper names none, feature pyramids have 256."""


class ConvolutionalHF(nn.Module):
    """Maps of strides 4, 8, 16, 32 -> the fused map Q_1 (B, d, H/4, W/4), and from it the attention map.

    Parameters: Σ_l C_l d for the lateral convolutions (no bias: it would attend to every place alike) and three pairs
    of fusion weights; with d = 256 and Res2Net101's levels 0.98 M.
    """

    def __init__(self, channels: Sequence[int], width: int = WIDTH) -> None:
        super().__init__()
        self.lateral = nn.ModuleList([nn.Conv2d(c, width, kernel_size=1, bias=False) for c in channels])
        self.fusion = nn.Parameter(torch.zeros(len(channels) - 1, 2))

    def fuse(self, levels: Sequence[Tensor]) -> Tensor:
        """Q_4 = P_4; Q_n = u_n P_n + v_n Up(Q_{n+1}), (u_n, v_n) = softmax(θ_n), P_n = conv1x1(w_n ⊙ F_n)."""
        weights = torch.softmax(self.fusion, dim=1)
        fused = self._lateral(len(levels) - 1, levels[-1])
        for n in range(len(levels) - 2, -1, -1):
            shallower = self._lateral(n, levels[n])
            deeper = functional.interpolate(fused, size=shallower.shape[2:], mode="bilinear", align_corners=False)
            fused = weights[n, 0] * shallower + weights[n, 1] * deeper
        return fused

    def _lateral(self, level: int, features: Tensor) -> Tensor:
        attended = channel_attention(features.float()) * features.float()
        # As in the parameter-free module: the levels' magnitudes differ by an order.
        scaled = attended / attended.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        projected: Tensor = self.lateral[level](scaled)
        return projected

    @torch.no_grad()
    def forward(self, levels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """A^HF = mean_c |Q_1|, average-pooled to `size` and scaled to mean 1 over each image: (B, 1, *size)."""
        energy = self.fuse(levels).float().abs().mean(dim=1, keepdim=True)
        attention = functional.adaptive_avg_pool2d(energy, size)
        return attention / attention.mean(dim=(2, 3), keepdim=True).clamp_min(1e-12)
