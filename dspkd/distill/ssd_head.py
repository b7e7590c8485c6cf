"""The first phase of SSD-KD: a head on the frozen teacher learns which rotated pictures show the same lesion.

Self-supervision as in SSKD (Xu et al., ECCV 2020), over which SSD-KD is built. The student is not touched.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from dspkd.distill.base import Method, MethodContext, Settings, StepInputs
from dspkd.distill.features import pooled

__all__ = ["ProjectionHead", "SSDHead", "four_rotations", "similarity_rows", "similarity_targets"]


def four_rotations(images: Tensor) -> Tensor:
    """(B, 3, S, S) -> (4 B, 3, S, S): the images, then all of them turned by 90, by 180 and by 270 degrees."""
    return torch.cat([images, *(torch.rot90(images, turns, dims=(2, 3)) for turns in (1, 2, 3))])


def similarity_rows(embeddings: Tensor) -> Tensor:
    """Cosines of each rotated picture with each original: (4 B, D) in the order of `four_rotations` -> (3 B, B)."""
    with torch.autocast(device_type=embeddings.device.type, enabled=False):
        directions = functional.normalize(embeddings.float(), dim=1)
        originals = directions[: len(directions) // 4]
        return directions[len(originals) :] @ originals.T


def similarity_targets(rows: Tensor) -> Tensor:
    """Which original each rotated picture comes from: (3 B, B) -> (3 B,) int64."""
    return torch.arange(rows.shape[1], device=rows.device).repeat(3)


class ProjectionHead(nn.Sequential):
    """Linear, ReLU, Linear, all as wide as the pooled features: (N, C) -> (N, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels))


class SSDHead(Method):
    """L = CE( cosines of each rotated picture with the originals of the batch, its own original ), no temperature."""

    Settings: ClassVar[type[Settings]] = Settings
    couples_images: ClassVar[bool] = True
    trains_student: ClassVar[bool] = False

    def __init__(self, context: MethodContext) -> None:
        super().__init__()
        self.teacher_final = context.teacher_final
        self.teacher_taps = (context.teacher_final,)
        self.teacher_head = ProjectionHead(context.teacher_shapes[context.teacher_final][0])

    @classmethod
    def build(cls, settings: Any, context: MethodContext) -> SSDHead:
        return cls(context)

    def views(self, images: Tensor) -> Tensor:
        return four_rotations(images)

    def forward(self, inputs: StepInputs) -> dict[str, Tensor]:
        rows = similarity_rows(self.teacher_head(pooled(inputs.teacher_maps[self.teacher_final])))
        targets = similarity_targets(rows)
        loss = functional.cross_entropy(rows, targets)
        return {"loss": loss, "accuracy": (rows.argmax(dim=1) == targets).float().mean()}
