"""Generation: rebuilding the teacher's map from what a mask has left of the student's (MGD, Yang et al., ECCV 2022).

The DSP-KD paper (equations 2 and 4, figure 4) takes the block and its weight over from MGD, with GELU for ReLU.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

__all__ = [
    "GenerationBlock",
    "GeneratorWidth",
    "default_alpha",
    "random_mask",
    "reconstruction_loss",
    "uniform_numbers",
]

GeneratorWidth = Annotated[int, Field(ge=1)] | Literal["full"]
"""Channels between the two convolutions of a generation block, as a setting of a method; full: those of the map."""

MGD_ALPHA = 7e-5
MGD_MAP_ELEMENTS = 512 * 7 * 7


def default_alpha(channels: int, height: int, width: int) -> float:
    """α = 7e-5 · 512·49 / (C_t H W): MGD's published weight, for which its sum over a 512x7x7 map was tuned, at
    any size.
    """
    return MGD_ALPHA * MGD_MAP_ELEMENTS / (channels * height * width)


def reconstruction_loss(rebuilt: Tensor, target: Tensor) -> Tensor:
    """(1/B) Σ_{c,h,w} (Y - F_T)² of two (B, C, H, W) maps, summed in float32: 100,000 squares overflow half
    precision.
    """
    return (rebuilt.float() - target.float()).square().sum() / target.shape[0]


def uniform_numbers(shape: tuple[int, ...]) -> Tensor:
    """(B, ...) in [0, 1) for this process's part of a batch. Where several processes train together each draws the
    numbers of all of them and takes its own: those that one process would have drawn, and the generators stay alike.

    Drawn on the CPU, whose generator a checkpoint keeps, so that a resumed run draws the same on any device.
    """
    several = dist.is_available() and dist.is_initialized()
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    return torch.rand((shape[0] * ranks, *shape[1:]))[rank * shape[0] : (rank + 1) * shape[0]]


def random_mask(shape: tuple[int, ...], hidden_fraction: float, device: torch.device) -> Tensor:
    """M of eq. 2: 0 with probability λ = `hidden_fraction`, else 1, each entry for itself."""
    return (uniform_numbers(shape) >= hidden_fraction).float().to(device)


class GenerationBlock(nn.Sequential):
    """3x3 convolution, activation, 3x3 convolution, padding 1, with biases; (B, C, H, W) -> (B, C, H, W).

    `width` narrows the layer between the two convolutions and never widens it; full keeps it at C as published.
    """

    def __init__(
        self, channels: int, width: int | Literal["full"] = "full", activation: type[nn.Module] = nn.GELU
    ) -> None:
        inner = channels if width == "full" else min(width, channels)
        super().__init__(
            nn.Conv2d(channels, inner, kernel_size=3, padding=1),
            activation(),
            nn.Conv2d(inner, channels, kernel_size=3, padding=1),
        )
