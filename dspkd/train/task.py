"""One training step of one stage: student, frozen teacher and method together, from pixels to named losses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from dspkd.data.views import pixels_to_tensor
from dspkd.distill import Method, MethodContext, StepInputs
from dspkd.distill.base import LOGITS
from dspkd.errors import ModelError
from dspkd.models import Architecture, FeatureTaps
from dspkd.models.folding import with_folded_norms
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

    The teacher sees the same view as the student, normalised its own way, in eval mode and without gradients. It is a
    copy (with `fold_norms`, one whose batch norms are part of its convolutions), held outside the module tree, so that
    no optimiser, checkpoint or data-parallel wrapper takes it for something to train. For a method with
    `teacher_learns` the copy is `peer`, stands in the tree, and is trained; `peer_norms` may change its batch norms.
    """

    def __init__(
        self,
        student: nn.Module,
        preprocess: Preprocess,
        method: Method,
        teacher: Student | None = None,
        *,
        memory_format: torch.memory_format = torch.contiguous_format,
        fold_norms: bool = True,
        peer_norms: Callable[[nn.Module], nn.Module] = lambda peer: peer,
    ) -> None:
        super().__init__()
        self.student, self.method = student, method.to(memory_format=memory_format)  # type: ignore[call-overload]
        # Several processes exchange the gradients of all that asks for one, and wait for those that never come.
        student.requires_grad_(method.trains_student)
        self._memory_format = memory_format
        self.normalise = Normalise(preprocess)
        self._taps = FeatureTaps(student, method.student_taps)
        self.peer: nn.Module | None = None
        self._teacher: list[nn.Module] = []
        self._teacher_normalise: list[Normalise] = []
        self._teacher_taps: list[FeatureTaps] = []
        if teacher is not None and method.needs_teacher:
            self._attach(teacher, fold_norms, peer_norms)

    def _attach(self, teacher: Student, fold_norms: bool, peer_norms: Callable[[nn.Module], nn.Module]) -> None:
        if self.method.teacher_learns:
            peer = peer_norms(copy.deepcopy(teacher.model).requires_grad_(True))
            self.peer = peer.to(memory_format=self._memory_format)  # type: ignore[call-overload]
        elif fold_norms:
            self._teacher = [with_folded_norms(teacher.model, tapped=self.method.teacher_taps)]
        else:
            self._teacher = [copy.deepcopy(teacher.model).eval().requires_grad_(False)]
        self._teacher_normalise = [Normalise(teacher.card.preprocess)]
        self._teacher_taps = [FeatureTaps(self._running_teacher(), self.method.teacher_taps)]

    def _running_teacher(self) -> nn.Module:
        return self.peer if self.peer is not None else self._teacher[0]

    def place_teacher(self, device: torch.device) -> None:
        for module in (*self._teacher, *self._teacher_normalise):
            module.to(device=device, memory_format=self._memory_format)  # type: ignore[call-overload]

    def train(self, mode: bool = True) -> StageTask:
        super().train(mode)
        if not self.method.trains_student:
            self.student.eval()
        return self

    def auxiliary_state(self) -> dict[str, Tensor]:
        """The state of everything that is trained beside the student: the method's layers and the peer."""
        return {key: value for key, value in self.state_dict().items() if not key.startswith("student.")}

    def load_auxiliary_state(self, state: dict[str, Tensor]) -> None:
        own = {f"student.{key}": value for key, value in self.student.state_dict().items()}
        self.load_state_dict({**own, **state})

    def close(self) -> None:
        """Remove every hook, so that both networks are as they were."""
        for taps in (self._taps, *self._teacher_taps):
            taps.close()

    @torch.no_grad()
    def ask_teacher(self, pixels: Tensor) -> dict[str, Tensor]:
        """What `method.teacher_reads` names, for uint8 pixels (B, 3, H, W): what `forward` takes as `answers`."""
        logits, maps = self._teacher_answers(self._images(pixels))
        answers = {LOGITS: logits, **self.method.condensed(maps)}
        return {name: answers[name] for name in self.method.teacher_reads or ()}

    def _images(self, pixels: Tensor) -> Tensor:
        return self.method.views(pixels.float().div(255.0)).to(memory_format=self._memory_format)

    def _teacher_answers(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self._running_teacher()(self._teacher_normalise[0](images))
        return logits, self._teacher_taps[0].take()

    def forward(
        self, pixels: Tensor, labels: Tensor, progress: float = 0.0, answers: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """`progress` is the share of the stage's steps that lie behind. With `answers` the teacher is not asked."""
        images = self._images(pixels)
        with torch.set_grad_enabled(self.method.trains_student):
            student_logits = self.student(self.normalise(images))
        teacher_logits: Tensor | None = None
        teacher_maps: dict[str, Tensor] = {}
        if answers is not None:
            teacher_maps = dict(answers)
            teacher_logits = teacher_maps.pop(LOGITS, None)
        elif self._teacher_taps:
            with torch.set_grad_enabled(self.peer is not None):
                teacher_logits, teacher_maps = self._teacher_answers(images)
        losses: dict[str, Tensor] = self.method(
            StepInputs(
                labels=labels,
                student_logits=student_logits,
                student_maps=self._taps.take(),
                teacher_logits=teacher_logits,
                teacher_maps=teacher_maps,
                progress=progress,
            )
        )
        return losses


@torch.no_grad()
def method_context(
    student: nn.Module,
    architecture: Architecture,
    num_classes: int,
    size: int,
    teacher: Student | None,
    *,
    maps: bool,
    class_shares: tuple[float, ...] = (),
) -> MethodContext:
    """Layer names and map shapes of both networks, from one blank image each.

    With `maps` False (methods on logits) nothing is tapped, so that any classifier will do.
    """
    if not maps:
        return MethodContext(num_classes=num_classes, class_shares=class_shares)

    def shapes(model: nn.Module, names: tuple[str, ...]) -> dict[str, tuple[int, int, int]]:
        training = model.training
        with FeatureTaps(model.eval(), names) as taps:
            model(torch.zeros(1, 3, size, size))
            found = {name: (m.shape[1], m.shape[2], m.shape[3]) for name, m in taps.take().items()}
        model.train(training)
        return found

    own = architecture.layers(student)
    context = MethodContext(
        num_classes=num_classes,
        student_final=own.final,
        student_levels=own.levels,
        student_shapes=shapes(student, (*own.levels, own.final)),
        class_shares=class_shares,
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
    return replace(
        context,
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
    # At least once: a process may have no images, and its answer still says how many classes there are.
    for start in range(0, max(1, len(pixels)), batch_size):
        images = pixels_to_tensor(pixels[start : start + batch_size]).to(device)
        parts.append(torch.softmax(model(normalise(images)).float(), dim=1).cpu().numpy())
    model.train(training)
    return np.concatenate(parts)
