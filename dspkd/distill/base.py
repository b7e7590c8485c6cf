"""The contract between a distillation method and the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

__all__ = [
    "HF_ATTENTION",
    "LOGITS",
    "Method",
    "MethodContext",
    "Settings",
    "StepInputs",
    "class_weights",
    "submodule_state",
]

LOGITS, HF_ATTENTION = "logits", "hf_attention"
"""Names of what a teacher's answer holds beside its maps, which go by their layers' names."""


class Settings(BaseModel):
    """Base of every method's own settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class MethodContext:
    """What a method may know of the two networks and of the data before it builds its auxiliary layers.

    Shapes are (C, H, W) of one image's map at the training size. `*_levels` are the layer names at strides 4, 8, 16 and
    32; `*_final` is the last map before pooling. Both networks' entries are empty for a method on logits, and the
    teacher's for a method without a teacher.
    """

    num_classes: int
    student_final: str = ""
    student_shapes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    teacher_name: str = ""
    teacher_levels: tuple[str, ...] = ()
    teacher_final: str = ""
    teacher_shapes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    student_levels: tuple[str, ...] = ()
    class_shares: tuple[float, ...] = ()
    """Share of each class in what training draws. Empty: not known, taken as equal."""


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One batch as a method sees it. Logits are (V, K); maps are (V, C, H, W) by layer name; labels are (B,) int64.

    V = B unless the method makes several `views` of each image. Nothing of the teacher carries a gradient, except for a
    method with `teacher_learns`; nothing of the student does for one without `trains_student`.
    """

    labels: Tensor
    student_logits: Tensor
    student_maps: Mapping[str, Tensor]
    teacher_logits: Tensor | None = None
    teacher_maps: Mapping[str, Tensor] = field(default_factory=dict)
    progress: float = 0.0
    """Share of the stage's steps that lie behind, from 0 up to but without 1."""


class Method(nn.Module):
    """A distillation method: the layers it reads, its auxiliary layers, and its loss.

    `forward` returns a dict of scalar tensors: `loss`, which is differentiated, and its named terms, which are logged.
    Auxiliary layers are the method's own parameters; the student's state dict never changes.
    """

    Settings: ClassVar[type[Settings]]
    needs_teacher: ClassVar[bool] = True
    needs_maps: ClassVar[bool] = True
    """False for a method on logits alone: any classifier will do, also one without feature maps."""
    teacher_learns: ClassVar[bool] = False
    """True for mutual learning: a copy of the teacher is trained beside the student, and takes the teacher's place."""
    trains_student: ClassVar[bool] = True
    """False for a stage that fits only the method's own layers, on the teacher. The student stays as it is."""

    couples_images: ClassVar[bool] = False
    """True if the loss of a batch is no mean over its images. Several processes then compute it on their parts of the
    batch, which is not what one process computes on all of it.
    """

    teacher_reads: tuple[str, ...] | None = None
    """All that `forward` reads of the teacher, where that may be stored and read again instead of asking it: LOGITS,
    HF_ATTENTION, names of layers. None: ask the teacher at every step, because it learns, sees other pictures than the
    student's view, or because what is read depends on layers that are fitted. Set on the class or by `__init__`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.student_taps: tuple[str, ...] = ()
        self.teacher_taps: tuple[str, ...] = ()

    @classmethod
    def build(cls, settings: Any, context: MethodContext) -> Method:
        """Make the method for one pair of networks. Auxiliary layers are initialised from torch's global generator."""
        raise NotImplementedError

    @classmethod
    def predecessor(cls, settings: Any) -> str | None:
        """The method whose stage has to come right before this one, because this one goes on with its layers."""
        return None

    def inherit(self, state: Mapping[str, Tensor]) -> None:
        """Take over layers from the state dict of the predecessor's method. Called only if there is a predecessor."""
        raise NotImplementedError

    def views(self, images: Tensor) -> Tensor:
        """What both networks see of (B, 3, H, W): (V, 3, H, W), V a multiple of B. By default the images themselves."""
        return images

    def condensed(self, teacher_maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What of the teacher's maps `forward` reads, made as small as it can be: what a cache stores. `forward` takes
        the maps themselves or this.
        """
        return dict(teacher_maps)

    def forward(self, inputs: StepInputs) -> dict[str, Tensor]:
        raise NotImplementedError


def submodule_state(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The part of a state dict that belongs to the submodule `name`, with its own keys."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def class_weights(shares: tuple[float, ...]) -> Tensor | None:
    """(K,) weights 1 / share for a class-weighted cross-entropy; None if the classes are drawn equally often.

    `functional.cross_entropy` divides by the sum of the weights it used, so equal weights are no weights.
    """
    if len(set(shares)) <= 1:
        return None
    # A class that is never drawn gets any finite weight.
    return torch.tensor([1.0 / share if share > 0 else 0.0 for share in shares])
