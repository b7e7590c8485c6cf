"""Parameters, MACs and FLOPs of a network.

Counted with torch.utils.flop_counter while the network runs once: two operations for each multiply-add of
convolutions and matrix products, nothing for batch norm, activations, pooling and other element-wise work, nothing
for biases. MACs here are half of that; FLOPs = 2 MACs. Papers (DSP-KD's Table 1 among them) often write "FLOPs"
where they mean MACs.

The paper's figures are fvcore's, which also counts normalisation layers: 2 per element of a batch norm and 5 per
element of a layer norm. `macs_with_norm` follows that convention and meets Table 1 within 0.4 %, where `macs` is up
to 2.8 % below it. It is there for comparison with published tables; ratios and reports use `macs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Complexity", "count"]

TOP_MODULES = 12
# fvcore 0.1.5, `batchnorm_flop_jit` in eval mode and `norm_flop_counter`, with affine parameters.
BATCH_NORM_OPERATIONS, LAYER_NORM_OPERATIONS = 2, 5


@dataclass(frozen=True, slots=True)
class Complexity:
    """Of one forward pass of `batch` images of `size` x `size`."""

    parameters: int
    macs: int
    macs_with_norm: int
    size: int
    batch: int = 1
    by_module: Sequence[tuple[str, int]] = ()
    """MACs of the outermost modules and their children, the largest first; a child's MACs are part of its parent's."""

    @property
    def flops(self) -> int:
        return 2 * self.macs

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "by_module": [list(entry) for entry in self.by_module], "flops": self.flops}


@torch.no_grad()
def count(model: nn.Module, size: int, batch: int = 1) -> Complexity:
    """Count one forward pass in eval mode, on the device and in the type of the model's parameters; the mode is
    restored.
    """
    from torch.utils.flop_counter import FlopCounterMode

    norm_operations = 0

    def watch(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal norm_operations
        per_element = LAYER_NORM_OPERATIONS if isinstance(module, nn.LayerNorm) else BATCH_NORM_OPERATIONS
        norm_operations += per_element * output.numel()

    first = next(model.parameters())
    # timm's own layers (BatchNormAct2d, LayerNorm2d) are subclasses of these.
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm | nn.LayerNorm)]
    handles = [norm.register_forward_hook(watch) for norm in norms]
    training = model.training
    model.eval()
    try:
        with FlopCounterMode(display=False, depth=2) as counter:
            model(torch.zeros(batch, 3, size, size, device=first.device, dtype=first.dtype))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    macs = counter.get_total_flops() // 2
    return Complexity(
        parameters=sum(p.numel() for p in model.parameters()),
        macs=macs,
        macs_with_norm=macs + norm_operations,
        size=size,
        batch=batch,
        by_module=_largest(counter.get_flop_counts(), type(model).__name__),
    )


def _largest(counts: dict[str, dict[Any, int]], root: str) -> list[tuple[str, int]]:
    """The counter names modules `ResNet.layer1.0`, and the whole `ResNet` and `Global`."""
    macs = {
        name.removeprefix(f"{root}."): sum(operations.values()) // 2
        for name, operations in counts.items()
        if name not in ("Global", root)
    }
    return sorted(macs.items(), key=lambda entry: (-entry[1], entry[0]))[:TOP_MODULES]
