"""ShuffleNetV1 with three groups (Zhang et al., CVPR 2018, arXiv 1707.01083), which neither timm nor torchvision has.

The names in the state dict are those of pytorchcv's `shufflenet_g3_w1`, so that its published ImageNet weights load
with `--weights`: `features.init_block.{conv,bn}`, `features.stage{1,2,3}.unit{n}.{compress_conv1,compress_bn1,dw_conv2,
dw_bn2,expand_conv3,expand_bn3}` and `output`. With 8 classes it has the 0.912 M parameters of the DSP-KD paper's
Table 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ShuffleNetV1", "shufflenet_v1_g3", "wide_shufflenet"]

GROUPS = 3
UNITS = (4, 8, 4)


def channel_shuffle(features: Tensor, groups: int) -> Tensor:
    """Channel c of group g goes to place g of group c, so that the next convolution mixes the groups (figure 1)."""
    batch, channels, height, width = features.shape
    return features.view(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(features.shape)


class ShuffleUnit(nn.Module):
    """Figure 2 (b); with stride 2 figure 2 (c), where the shortcut is a 3x3 average pool beside the new channels."""

    def __init__(self, channels: int, out_channels: int, *, stride: int, first: bool) -> None:
        super().__init__()
        middle = out_channels // 4
        self.stride = stride
        # "We do not apply group convolution on the first pointwise layer", whose input has few channels (section 3.2).
        self.compress_conv1 = nn.Conv2d(channels, middle, kernel_size=1, groups=1 if first else GROUPS, bias=False)
        self.compress_bn1 = nn.BatchNorm2d(middle)
        self.dw_conv2 = nn.Conv2d(middle, middle, kernel_size=3, stride=stride, padding=1, groups=middle, bias=False)
        self.dw_bn2 = nn.BatchNorm2d(middle)
        new = out_channels - channels if stride == 2 else out_channels
        self.expand_conv3 = nn.Conv2d(middle, new, kernel_size=1, groups=GROUPS, bias=False)
        self.expand_bn3 = nn.BatchNorm2d(new)

    def forward(self, features: Tensor) -> Tensor:
        branch = functional.relu(self.compress_bn1(self.compress_conv1(features)))
        branch = self.dw_bn2(self.dw_conv2(channel_shuffle(branch, GROUPS)))
        branch = self.expand_bn3(self.expand_conv3(branch))
        if self.stride == 1:
            return functional.relu(branch + features)
        shortcut = functional.avg_pool2d(features, kernel_size=3, stride=2, padding=1)
        return functional.relu(torch.cat([branch, shortcut], dim=1))


class _Stem(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, images: Tensor) -> Tensor:
        return functional.max_pool2d(functional.relu(self.bn(self.conv(images))), kernel_size=3, stride=2, padding=1)


class ShuffleNetV1(nn.Module):
    """Images (B, 3, H, W) -> logits (B, K). `channels` are those of the stem and of the three stages (table 1)."""

    def __init__(self, channels: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("init_block", _Stem(channels[0]))
        for index, units in enumerate(UNITS):
            stage = nn.Sequential()
            for unit in range(units):
                before = channels[index] if unit == 0 else channels[index + 1]
                stage.add_module(
                    f"unit{unit + 1}",
                    ShuffleUnit(
                        before, channels[index + 1], stride=2 if unit == 0 else 1, first=index == 0 and unit == 0
                    ),
                )
            self.features.add_module(f"stage{index + 1}", stage)
        self.output = nn.Linear(channels[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.output(self.features(images).mean(dim=(2, 3)))
        return logits


def shufflenet_v1_g3(num_classes: int) -> ShuffleNetV1:
    """ShuffleNet 1x, g = 3."""
    return ShuffleNetV1((24, 240, 480, 960), num_classes)


def wide_shufflenet(num_classes: int) -> ShuffleNetV1:
    """An approximation of wide-ShuffleNet (Hoang et al., Applied Sciences 12, 2022): ShuffleNetV1 widened 1.4 times, to
    the 1.8 M parameters that are published (1.758 M). Its layer table and its additional skip connections are not
    known, and its segmentation before classification is not part of it: figures of this network are not theirs.
    """
    return ShuffleNetV1((24, 336, 672, 1344), num_classes)
