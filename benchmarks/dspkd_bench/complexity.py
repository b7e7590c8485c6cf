"""Parameters, MACs and FLOPs of a network.

Counted with torch.utils.flop_counter, which counts two operations for each multiply-add of convolutions and matrix products
and nothing for element-wise work. MACs here are half of that; FLOPs = 2 MACs. Papers (DSP-KD's Table 1 among them) often
write "FLOPs" where they mean MACs, and tools like fvcore also count batch norm, which adds 1 to 3 %.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["Complexity", "count"]


@dataclass(frozen=True, slots=True)
class Complexity:
    """`macs` for one image of `size` x `size`."""

    parameters: int
    macs: int
    size: int

    @property
    def flops(self) -> int:
        return 2 * self.macs

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "flops": self.flops}


@torch.no_grad()
def count(model: nn.Module, size: int) -> Complexity:
    """Count one forward pass in eval mode on the CPU; the mode is restored."""
    from torch.utils.flop_counter import FlopCounterMode

    training = model.training
    model.eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, size, size))
    model.train(training)
    return Complexity(
        parameters=sum(p.numel() for p in model.parameters()), macs=counter.get_total_flops() // 2, size=size
    )
