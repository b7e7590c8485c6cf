"""The contract between a distillation method and the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

__all__ = ["Method", "MethodContext", "Settings", "StepInputs"]


class Settings(BaseModel):
    """Base of every method's own settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class MethodContext:
    """What a method may know of the two networks before it builds its auxiliary layers.

    Shapes are (C, H, W) of one image's map at the training size. `*_levels` are the layer names at strides 4, 8, 16 and
    32; `*_final` is the last map before pooling. The teacher's entries are empty for a method without a teacher.
    """

    num_classes: int
    student_final: str
    student_shapes: Mapping[str, tuple[int, int, int]]
    teacher_name: str = ""
    teacher_levels: tuple[str, ...] = ()
    teacher_final: str = ""
    teacher_shapes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One batch as a method sees it. Logits are (B, K); maps are (B, C, H, W) by layer name; labels are (B,) int64.

    Nothing of the teacher carries a gradient.
    """

    labels: Tensor
    student_logits: Tensor
    student_maps: Mapping[str, Tensor]
    teacher_logits: Tensor | None = None
    teacher_maps: Mapping[str, Tensor] = field(default_factory=dict)


class Method(nn.Module):
    """A distillation method: the layers it reads, its auxiliary layers, and its loss.

    `forward` returns a dict of scalar tensors: `loss`, which is differentiated, and its named terms, which are logged.
    Auxiliary layers are the method's own parameters; the student's state dict never changes.
    """

    Settings: ClassVar[type[Settings]]
    needs_teacher: ClassVar[bool] = True
    needs_maps: ClassVar[bool] = True
    """False for a method on logits alone: any classifier will do, also one without feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.student_taps: tuple[str, ...] = ()
        self.teacher_taps: tuple[str, ...] = ()

    @classmethod
    def build(cls, settings: Any, context: MethodContext) -> Method:
        """Make the method for one pair of networks. Auxiliary layers are initialised from torch's global generator."""
        raise NotImplementedError

    def forward(self, inputs: StepInputs) -> dict[str, Tensor]:
        raise NotImplementedError
