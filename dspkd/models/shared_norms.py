"""Batch norms whose statistics are those of the batch of all processes: what one process with the whole batch has."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn

__all__ = ["share_batch_statistics"]


def share_batch_statistics(module: nn.Module, device: torch.device) -> nn.Module:
    """Make the batch norms of `module` take means and variances over all processes of the group, in training mode.

    On a GPU these are PyTorch's SyncBatchNorm, which takes the norms' places, so attach hooks afterwards. Every process
    must have equally many images. Parameters and names stay.
    """
    if device.type == "cuda":
        return convert_sync_batchnorm(module)
    for norm in module.modules():
        if type(norm) in _SHARED:
            norm.__class__ = _SHARED[type(norm)]
    return module


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class _SharedBatchNorm2d(nn.BatchNorm2d):
    """PyTorch has none for a CPU. In float32, and the variance from centred values: as exact as the norm of one."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        places = (0, 2, 3)
        count = input.numel() // input.shape[1] * dist.get_world_size()
        mean = _sum(input.float().sum(places)) / count
        centred = input.float() - mean[:, None, None]
        variance = _sum(centred.square().sum(places)) / count
        self._follow(mean.detach(), variance.detach() * count / max(1, count - 1))
        made = centred * torch.rsqrt(variance + self.eps)[:, None, None]
        if self.affine:
            made = made * self.weight[:, None, None] + self.bias[:, None, None]
        return made.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class _SharedBatchNormAct2d(BatchNormAct2d, _SharedBatchNorm2d):
    """timm's, which has an activation inside."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return BatchNormAct2d.forward(self, input)
        made: Tensor = self.act(self.drop(_SharedBatchNorm2d.forward(self, input)))  # type: ignore[operator]
        return made


def _sum(own: Tensor) -> Tensor:
    total: Tensor = _SumOverProcesses.apply(own)
    return total


_SHARED: dict[type, type] = {nn.BatchNorm2d: _SharedBatchNorm2d, BatchNormAct2d: _SharedBatchNormAct2d}
