"""The network as it is deployed: normalisation and softmax inside, batch norms folded, shapes that compilers take."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.shufflenetv2 import InvertedResidual, ShuffleNetV2, channel_shuffle

from dspkd.preprocess import Preprocess
from dspkd.student import Student

__all__ = ["DeployModule", "deploy_module", "fold_batch_norms"]


class DeployModule(nn.Module):
    """float32 (N, 3, H, W) RGB in [0, 1] -> float32 (N, K) probabilities."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return torch.softmax(self.network((image - self.mean) / self.std), dim=1)


def deploy_module(student: Student) -> DeployModule:
    """A copy of the student ready for a compiler; the student itself is left as it is.

    Everything done here is exact in eval mode, up to rounding.
    """
    network = copy.deepcopy(student.model).eval()
    if isinstance(network, ShuffleNetV2):
        network = _SlicedShuffleNet(network)
    fold_batch_norms(network)
    return DeployModule(network, student.card.preprocess).eval()


def fold_batch_norms(model: nn.Module) -> None:
    """Fold every BatchNorm2d that directly follows a convolution in an nn.Sequential into it, in place.

    Only there is it certain, without tracing, that nothing else reads the convolution's output.
    """
    for module in model.modules():
        if not isinstance(module, nn.Sequential):
            continue
        names = list(module._modules)
        for first, second in pairwise(names):
            conv, norm = module._modules[first], module._modules[second]
            if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
                module._modules[first] = fuse_conv_bn_eval(conv, norm)
                module._modules[second] = nn.Identity()


class _SlicedShuffleNet(nn.Module):
    """torchvision's ShuffleNetV2 with slices for `chunk` and a mean that keeps its dimensions.

    XNNPACK takes neither of the originals, and breaks the network into 15 pieces around them.
    """

    def __init__(self, model: ShuffleNetV2) -> None:
        super().__init__()
        self.stem = nn.Sequential(model.conv1, model.maxpool)
        units = [unit for stage in (model.stage2, model.stage3, model.stage4) for unit in stage]
        self.units = nn.ModuleList(_SlicedUnit(unit) for unit in units)
        self.conv5, self.fc = model.conv5, model.fc

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for unit in self.units:
            x = unit(x)
        return self.fc(self.conv5(x).mean((2, 3), keepdim=True).flatten(1))


class _SlicedUnit(nn.Module):
    def __init__(self, unit: InvertedResidual) -> None:
        super().__init__()
        self.stride, self.branch1, self.branch2 = unit.stride, unit.branch1, unit.branch2

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            half = x.shape[1] // 2
            joined = torch.cat((x[:, :half], self.branch2(x[:, half:])), dim=1)
        else:
            joined = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(joined, 2)
