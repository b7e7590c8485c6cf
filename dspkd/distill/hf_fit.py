"""Fitting the convolutional HF module before stage 1 of DSP-KD: a linear head, the labels, the frozen teacher.

Reading 2d of the paper (DECISIONS.md). The student is not touched; the head is thrown away.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from dspkd.distill.base import Method, MethodContext, Settings, StepInputs
from dspkd.distill.features import pooled
from dspkd.distill.hf_convolutional import WIDTH, ConvolutionalHF

__all__ = ["HFFit"]


class HFFit(Method):
    """L = CE(head(GAP(Q_1)), y)."""

    Settings: ClassVar[type[Settings]] = Settings
    trains_student: ClassVar[bool] = False

    def __init__(self, context: MethodContext) -> None:
        super().__init__()
        self.levels = context.teacher_levels
        self.teacher_taps = context.teacher_levels
        self.hf = ConvolutionalHF([context.teacher_shapes[level][0] for level in self.levels])
        self.head = nn.Linear(WIDTH, context.num_classes)

    @classmethod
    def build(cls, settings: Any, context: MethodContext) -> HFFit:
        return cls(context)

    def forward(self, inputs: StepInputs) -> dict[str, Tensor]:
        logits = self.head(pooled(self.hf.fuse([inputs.teacher_maps[level] for level in self.levels])))
        loss = functional.cross_entropy(logits.float(), inputs.labels)
        hits = (logits.argmax(dim=1) == inputs.labels).float().mean()
        return {"loss": loss, "cross_entropy": loss.detach(), "accuracy": hits}
