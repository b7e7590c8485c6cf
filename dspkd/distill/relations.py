"""Relations between samples and between channels, as SSD-KD compares them (Wang et al., MedIA 2023).

DRKD compares the distances and angles between the samples of a batch (RKD, Park et al., CVPR 2019), CRKD the Gram
matrices of the channels. All in float32, without autocast: differences of products lose everything in half precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ChannelRegressor", "angle_relation_loss", "channel_relation_loss", "distance_relation_loss"]

# Pairs closer than this share of the mean squared distance have no direction.
SAME_PLACE = 1e-6
# The root has an infinite gradient at 0, and rounding can put a difference of two sums below it.
ROOT_EPS = 1e-20


def _float32(device: torch.device) -> Any:
    return torch.autocast(device_type=device.type, enabled=False)


def distance_relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """SmoothL1(D_s, D_t) of two (N, C): D_ij = |f_i - f_j| / mean of the distances that are not 0, (N, N).

    The student's mean stays in the graph.
    """
    return functional.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher).detach())


def _relative_distances(features: Tensor) -> Tensor:
    distances = _squared_distances(features)[1].clamp_min(1e-12).sqrt()
    distances = distances * (1.0 - torch.eye(len(distances), device=distances.device))
    return distances / distances[distances > 0].mean()


def angle_relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """SmoothL1(A_s, A_t) of two (N, C); A_jik: cosine of the angle at j from i to k, (N, N, N), 0 if i or k is j."""
    return functional.smooth_l1_loss(_angle_cosines(student), _angle_cosines(teacher).detach())


def _angle_cosines(features: Tensor) -> Tensor:
    """<f_i - f_j, f_k - f_j> = g_ik - g_ij - g_jk + g_jj with g the products of the features, so that no (N, N, C)
    tensor of differences is needed.
    """
    products, squared = _squared_distances(features)
    inner = products[None, :, :] - products[:, :, None] - products[:, None, :] + products.diagonal()[:, None, None]
    apart = squared > SAME_PLACE * squared.detach().mean()
    inverse = torch.where(apart, squared.clamp_min(1e-12), 1.0).rsqrt() * apart
    return inner * inverse[:, :, None] * inverse[:, None, :]


def _squared_distances(features: Tensor) -> tuple[Tensor, Tensor]:
    """Products g_ij of the centred features and |f_i - f_j|², both (N, N); centring leaves distances as they are, and
    their digits too.
    """
    with _float32(features.device):
        centred = features.float() - features.float().mean(dim=0, keepdim=True)
        products = centred @ centred.T
        norms = products.diagonal()
        return products, (norms[:, None] + norms[None, :] - 2.0 * products).clamp_min(0.0)


def channel_relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """sqrt( mean_{i,c,c'} (G_s - G_t)² ), G = F Fᵀ / (C H W) in (N, C, C), of two maps (N, C, H, W) of equal shape.

    |S Sᵀ - T Tᵀ|² = |Sᵀ S|² - 2 |Sᵀ T|² + |Tᵀ T|² needs matrices of H W x H W alone. At 2048 channels and 7x7 places
    that is 1/1700 of the Gram matrices (2.1 GB for 128 maps), for the same value.
    """
    count, channels, height, width = student.shape
    with _float32(student.device):
        own, other = student.float().flatten(2), teacher.float().flatten(2)
        difference = _product_norm(own, own) - 2.0 * _product_norm(own, other) + _product_norm(other, other)
        mean = difference / ((channels * height * width) ** 2 * count * channels**2)
        return mean.clamp_min(ROOT_EPS).sqrt()


def _product_norm(left: Tensor, right: Tensor) -> Tensor:
    """Σ_i |L_iᵀ R_i|² of (N, C, P), (N, C, P)."""
    return torch.bmm(left.transpose(1, 2), right).square().sum()


class ChannelRegressor(nn.Sequential):
    """1x1 convolution, batch norm, ReLU: the student's map with the teacher's number of channels."""

    def __init__(self, channels: int, target_channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, target_channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(target_channels),
            nn.ReLU(),
        )
