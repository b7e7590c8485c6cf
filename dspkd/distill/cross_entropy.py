"""Plain training on labels: how teachers and the undistilled baseline are fitted."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from dspkd.distill.base import Method, MethodContext, Settings, StepInputs

__all__ = ["CrossEntropy"]


class CrossEntropySettings(Settings):
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)


class CrossEntropy(Method):
    """L = CE(z, y), batch mean."""

    Settings: ClassVar[type[Settings]] = CrossEntropySettings
    needs_teacher: ClassVar[bool] = False
    needs_maps: ClassVar[bool] = False

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    @classmethod
    def build(cls, settings: Any, context: MethodContext) -> CrossEntropy:
        return cls(settings.label_smoothing)

    def forward(self, inputs: StepInputs) -> dict[str, Tensor]:
        loss = functional.cross_entropy(
            inputs.student_logits.float(), inputs.labels, label_smoothing=self.label_smoothing
        )
        return {"loss": loss, "cross_entropy": loss.detach()}
