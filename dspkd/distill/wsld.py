"""WSLD: weighted soft labels (Zhou et al., ICLR 2021, arXiv 2102.00650).

A sample's soft label counts less where the student already beats the teacher on the hard one. Defaults: T = 2, α = 2.5,
the authors' values for ImageNet (their CIFAR-100 values are T = 4, α = 2.25). The authors run the teacher in training
mode, so that its batch statistics drift; here it is frozen, in eval mode, as for every other method.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from dspkd.distill.base import LOGITS, Method, MethodContext, Settings, StepInputs

__all__ = ["WSLD", "soft_cross_entropy", "soft_label_weights"]

EPS = 1e-7


@torch.no_grad()
def soft_label_weights(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """w_i = 1 - exp( -CE(z_s,i, y_i) / (CE(z_t,i, y_i) + 1e-7) ): (B, K), (B, K), (B,) -> (B,) in [0, 1].

    Both cross-entropies are at T = 1, and no gradient passes.
    """
    of_student = functional.cross_entropy(student_logits.float(), labels, reduction="none")
    of_teacher = functional.cross_entropy(teacher_logits.float(), labels, reduction="none")
    return 1.0 - torch.exp(-of_student / (of_teacher + EPS))


def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """H(p_t^T, p_s^T) = -Σ_k p_t,k^T log p_s,k^T of each sample: (B, K), (B, K) -> (B,), in float32.

    A cross-entropy, not a divergence: the gradient is the same, the value is not.
    """
    targets = torch.softmax(teacher_logits.float() / temperature, dim=1)
    return -(targets * functional.log_softmax(student_logits.float() / temperature, dim=1)).sum(dim=1)


class WSLDSettings(Settings):
    """`temperature` T, `distillation_weight` α."""

    temperature: float = Field(default=2.0, gt=0.0)
    distillation_weight: float = Field(default=2.5, ge=0.0)


class WSLD(Method):
    """L = CE(z_s, y) + α T² mean_i[ w_i H(p_t,i^T, p_s,i^T) ]."""

    Settings: ClassVar[type[Settings]] = WSLDSettings
    needs_maps: ClassVar[bool] = False
    teacher_reads = (LOGITS,)

    def __init__(self, settings: WSLDSettings) -> None:
        super().__init__()
        self.settings = settings

    @classmethod
    def build(cls, settings: Any, context: MethodContext) -> WSLD:
        return cls(settings)

    def forward(self, inputs: StepInputs) -> dict[str, Tensor]:
        assert inputs.teacher_logits is not None
        temperature = self.settings.temperature
        cross_entropy = functional.cross_entropy(inputs.student_logits.float(), inputs.labels)
        weights = soft_label_weights(inputs.student_logits, inputs.teacher_logits, inputs.labels)
        soft = soft_cross_entropy(inputs.student_logits, inputs.teacher_logits, temperature)
        distillation = temperature**2 * (weights * soft).mean()
        return {
            "loss": cross_entropy + self.settings.distillation_weight * distillation,
            "cross_entropy": cross_entropy.detach(),
            "wsld": distillation.detach(),
            # Near 1 on a teacher that knows the training set by heart; WSLD is then Vanilla-KD.
            "mean_weight": weights.mean(),
        }
