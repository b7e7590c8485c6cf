"""One training step of one stage: student, frozen teacher and method together, from pixels to named losses."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from dspkd.data.views import pixels_to_tensor
from dspkd.distill import Method, MethodContext, StepInputs
from dspkd.errors import ModelError
from dspkd.models import Architecture, FeatureTaps
from dspkd.preprocess import Preprocess
from dspkd.student import Student

__all__ = ["Normalise", "StageTask", "method_context", "predict_probabilities"]


class Normalise(nn.Module):
    """(x - mean) / std per channel, on (B, 3, H, W) in [0, 1]. Buffers are not saved: `Preprocess` is the record."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class StageTask(nn.Module):
    """uint8 images (B, 3, H, W) and labels (B,) -> dict of losses.

    The teacher sees the same view as the student, normalised its own way, in eval mode and without gradients. It is
    held outside the module tree, so that no optimiser, checkpoint or data-parallel wrapper takes it for something to
    train.
    """

    def __init__(
        self,
        student: nn.Module,
        preprocess: Preprocess,
        method: Method,
        teacher: Student | None = None,
        *,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        super().__init__()
        self.student, self.method = student, method.to(memory_format=memory_format)  # type: ignore[call-overload]
        self._memory_format = memory_format
        self.normalise = Normalise(preprocess)
        self._taps = FeatureTaps(student, method.student_taps)
        self._teacher = [teacher.model.eval().requires_grad_(False)] if teacher and method.needs_teacher else []
        self._teacher_normalise = [Normalise(teacher.card.preprocess)] if self._teacher and teacher else []
        self._teacher_taps = [FeatureTaps(model, method.teacher_taps) for model in self._teacher]

    def place_teacher(self, device: torch.device) -> None:
        for module in (*self._teacher, *self._teacher_normalise):
            module.to(device=device, memory_format=self._memory_format)  # type: ignore[call-overload]

    def close(self) -> None:
        """Remove every hook, so that both networks are as they were."""
        for taps in (self._taps, *self._teacher_taps):
            taps.close()

    def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        images = pixels.float().div(255.0).to(memory_format=self._memory_format)
        student_logits = self.student(self.normalise(images))
        teacher_logits, teacher_maps = None, {}
        if self._teacher:
            with torch.no_grad():
                teacher_logits = self._teacher[0](self._teacher_normalise[0](images))
            teacher_maps = self._teacher_taps[0].take()
        losses: dict[str, Tensor] = self.method(
            StepInputs(
                labels=labels,
                student_logits=student_logits,
                student_maps=self._taps.take(),
                teacher_logits=teacher_logits,
                teacher_maps=teacher_maps,
            )
        )
        return losses


@torch.no_grad()
def method_context(
    student: nn.Module, architecture: Architecture, num_classes: int, size: int, teacher: Student | None, *, maps: bool
) -> MethodContext:
    """Layer names and map shapes of both networks, from one blank image each.

    With `maps` False (methods on logits) nothing is tapped, so that any classifier will do.
    """
    if not maps:
        return MethodContext(num_classes=num_classes, student_final="", student_shapes={})

    def shapes(model: nn.Module, names: tuple[str, ...]) -> dict[str, tuple[int, int, int]]:
        training = model.training
        with FeatureTaps(model.eval(), names) as taps:
            model(torch.zeros(1, 3, size, size))
            found = {name: (m.shape[1], m.shape[2], m.shape[3]) for name, m in taps.take().items()}
        model.train(training)
        return found

    own = architecture.layers(student)
    context = MethodContext(
        num_classes=num_classes, student_final=own.final, student_shapes=shapes(student, (own.final,))
    )
    if teacher is None:
        return context
    theirs = Architecture(teacher.card.architecture).layers(teacher.model)
    names = (*theirs.levels, theirs.final)
    found = shapes(teacher.model, names)
    if any(shape[1] < 1 for shape in found.values()):
        raise ModelError(
            f"{teacher.card.architecture} gives empty feature maps at {size} px", hint="use a larger --size"
        )
    return MethodContext(
        num_classes=num_classes,
        student_final=own.final,
        student_shapes=context.student_shapes,
        teacher_name=teacher.card.architecture,
        teacher_levels=theirs.levels,
        teacher_final=theirs.final,
        teacher_shapes=found,
    )


@torch.no_grad()
def predict_probabilities(
    model: nn.Module,
    preprocess: Preprocess,
    pixels: np.ndarray,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """uint8 pixels (N, H, W, 3) -> float32 probabilities (N, K), in eval mode; the mode is restored."""
    normalise = Normalise(preprocess).to(device)
    training = model.training
    model.eval()
    parts = []
    for start in range(0, len(pixels), batch_size):
        images = pixels_to_tensor(pixels[start : start + batch_size]).to(device)
        parts.append(torch.softmax(model(normalise(images)).float(), dim=1).cpu().numpy())
    model.train(training)
    return np.concatenate(parts)
