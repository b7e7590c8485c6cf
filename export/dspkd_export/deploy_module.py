"""The network as it is deployed: normalisation and softmax inside, batch norms folded, no channel shuffles."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.shufflenetv2 import ShuffleNetV2

from dspkd.preprocess import Preprocess
from dspkd.student import Student
from dspkd_export.live_channels import LiveChannelShuffleNet

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


def deploy_module(student: Student, *, rewrite: bool = True) -> DeployModule:
    """A copy of the student ready for a compiler; the student itself is left as it is.

    Everything done here is exact in eval mode, up to rounding. `rewrite=False` leaves the network as its library has
    it, for comparison.
    """
    network = copy.deepcopy(student.model).eval()
    if not rewrite:
        return DeployModule(network, student.card.preprocess).eval()
    fold_batch_norms(network)
    if isinstance(network, ShuffleNetV2):
        network = LiveChannelShuffleNet(network)
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
