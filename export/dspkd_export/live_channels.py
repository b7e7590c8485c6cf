"""ShuffleNetV2 without its shuffles: the same function in eval mode, with less memory traffic.

A unit of ShuffleNetV2 leaves half of its channels alone, runs the other half through three convolutions, concatenates
and shuffles. The shuffle only renames channels, and the half that is left alone is only copied. Both can be settled
before the network runs: every channel is followed from the convolution that produces it to the one unit that reads
it, and waits there without being touched. A producing 1x1 convolution gets its output channels sorted by who reads
them, so that each reader takes one contiguous slice; the reader's weights are permuted to match. FLOPs and parameters
stay the same, unless widths are rounded up: convolutions of 58, 116 and 232 channels get further ones then, which are
zero and which nobody reads, because a compiler may have no fast kernel for such numbers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torchvision.models.shufflenetv2 import InvertedResidual, ShuffleNetV2

__all__ = ["LiveChannelShuffleNet", "Widths"]

# One channel in flight: (number of the branch that produced it, its place among that branch's outputs).
Wire = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Widths:
    """Multiples of channels: between the convolutions of a branch, and of what it gives."""

    inner: int = 1
    outputs: int = 1


class LiveChannelShuffleNet(nn.Module):
    """(N, 3, H, W) -> logits (N, K), equal to `model` in eval mode up to rounding. `model` is not changed.

    Each unit reads a concatenation of slices; see the module's docstring. The batch norms of `model` must have been
    folded into its convolutions before. `widths` are the multiples to which channels are rounded up.
    """

    def __init__(self, model: ShuffleNetV2, widths: Widths | None = None) -> None:
        super().__init__()
        units: list[InvertedResidual] = [u for stage in (model.stage2, model.stage3, model.stage4) for u in stage]
        self.stem = nn.Sequential(*_copied(model.conv1), model.maxpool)
        self.branches = nn.ModuleList()
        # branch -> the unit it belongs to, in the order in which they run
        self._unit_of = [k for k, unit in enumerate(units) for _ in range(1 if unit.stride == 1 else 2)]
        for unit in units:
            if unit.stride != 1:
                self.branches.append(_copied(unit.branch1))
            self.branches.append(_copied(unit.branch2))
        self.head_conv = _copied(model.conv5)
        self.classifier = copy.deepcopy(model.fc)
        reads = _channels_read(units)
        self._slices = self._sort_outputs(reads)
        self._permute_inputs(reads)
        if widths is not None:
            self._widen(widths)

    def _widen(self, widths: Widths) -> None:
        """After everything else: the new channels come last, so that no slice moves."""
        for branch in self.branches:
            convolutions = _convolutions(branch)
            width = convolutions[0].in_channels
            for conv in convolutions:
                multiple = widths.outputs if conv is convolutions[-1] else widths.inner
                outputs = width if conv.groups > 1 else math.ceil(conv.out_channels / multiple) * multiple
                _resize(conv, width, outputs)
                width = outputs

    def _sort_outputs(self, reads: Sequence[list[Wire]]) -> list[list[tuple[int, int, int]]]:
        """Sort each branch's outputs by reader. Gives for each reader its slices (branch, start, length)."""
        reader_of = {wire: reader for reader, wires in enumerate(reads) for wire in wires}
        slices: list[list[tuple[int, int, int]]] = [[] for _ in reads]
        self._place: dict[Wire, int] = {}
        for number, branch in enumerate(self.branches):
            last = _convolutions(branch)[-1]
            order = sorted(range(last.out_channels), key=lambda c: (reader_of[(number, c)], c))
            _permute_outputs(last, order)
            self._place.update({(number, channel): place for place, channel in enumerate(order)})
            start = 0
            for reader, members in groupby(order, key=lambda c: reader_of[(number, c)]):
                length = len(list(members))
                slices[reader].append((number, start, length))
                start += length
        return slices

    def _permute_inputs(self, reads: Sequence[list[Wire]]) -> None:
        """Reorder each reader's input columns from the channels' old order to the order in which they now arrive."""
        head = len(reads) - 1
        for reader, wires in enumerate(reads):
            if not wires:
                continue
            arriving = sorted(range(len(wires)), key=lambda i: (wires[i][0], self._place[wires[i]]))
            chains = (
                [self.head_conv]
                if reader == head
                else [branch for branch, unit in zip(self.branches, self._unit_of, strict=True) if unit == reader]
            )
            for chain in chains:
                first, *following = _convolutions(chain)
                if first.groups > 1:  # a depthwise convolution carries the order on to the next one
                    _permute_outputs(first, arriving)
                    first = following[0]
                first.weight.data = first.weight.data[:, arriving].clone()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        outputs: list[Tensor] = []
        for number, branch in enumerate(self.branches):
            unit = self._unit_of[number]
            if number and unit != self._unit_of[number - 1]:
                x = self._gather(unit, outputs)
            outputs.append(branch(x))
        x = self.head_conv(self._gather(len(self._slices) - 1, outputs))
        return self.classifier(x.mean((2, 3), keepdim=True).flatten(1))

    def _gather(self, reader: int, outputs: Sequence[Tensor]) -> Tensor:
        # A slice of everything is left out: compilers would take it for an operation.
        parts = [
            whole if length == whole.shape[1] else whole[:, start : start + length]
            for whole, start, length in (
                (outputs[number], start, length) for number, start, length in self._slices[reader]
            )
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _channels_read(units: Sequence[InvertedResidual]) -> list[list[Wire]]:
    """For each unit, and last for the head, the channels that it reads, in the order in which its weights expect them.

    The first unit reads the stem and gets an empty list.
    """
    reads: list[list[Wire]] = []
    current: list[Wire] = []
    branches = 0
    for unit in units:
        width = _convolutions(unit.branch2)[-1].out_channels
        if unit.stride == 1:
            waiting, read = current[:width], current[width:]
        else:
            waiting, read = [(branches, c) for c in range(width)], current
            branches += 1
        reads.append(read)
        produced = [(branches, c) for c in range(width)]
        branches += 1
        # channel_shuffle with two groups takes from either half in turn.
        current = [wire for pair in zip(waiting, produced, strict=True) for wire in pair]
    return [*reads, current]


def _copied(chain: nn.Sequential) -> nn.Sequential:
    """A copy of a folded chain, without what stands where its batch norms were."""
    return nn.Sequential(*(copy.deepcopy(layer) for layer in chain if not isinstance(layer, nn.Identity)))


def _convolutions(chain: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in chain.modules() if isinstance(layer, nn.Conv2d)]


def _permute_outputs(conv: nn.Conv2d, order: Sequence[int]) -> None:
    conv.weight.data = conv.weight.data[list(order)].clone()
    assert conv.bias is not None, "a folded convolution has a bias"
    conv.bias.data = conv.bias.data[list(order)].clone()


def _resize(conv: nn.Conv2d, inputs: int, outputs: int) -> None:
    """More channels on either side, with weights and bias of zero. A depthwise convolution gets as many groups."""
    if conv.groups > 1:
        conv.groups = outputs
    weight = conv.weight.new_zeros(outputs, inputs // conv.groups, *conv.kernel_size)
    weight[: conv.out_channels, : conv.weight.shape[1]] = conv.weight.data
    assert conv.bias is not None, "a folded convolution has a bias"
    bias = conv.bias.new_zeros(outputs)
    bias[: conv.out_channels] = conv.bias.data
    conv.weight.data, conv.bias.data = weight, bias
    conv.in_channels, conv.out_channels = inputs, outputs
