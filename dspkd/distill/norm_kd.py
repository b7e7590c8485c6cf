"""Stage 2 of DSP-KD: distillation of normalised logits (paper section 3.3, equations 7 and 8; NormKD, arXiv
2308.00520).

Each sample gets its own temperature, T_norm times the standard deviation σ of its logits, so that confident and
hesitant samples are softened alike.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from dspkd.distill.base import LOGITS, Method, MethodContext, Settings, StepInputs

__all__ = ["NormKD", "norm_kd_loss", "normalised_temperature"]


def normalised_temperature(logits: Tensor, t_norm: float, eps: float = 1e-6) -> Tensor:
    """τ = T_norm (σ + eps) per sample: (B, K) -> (B, 1), with the unbiased standard deviation over the K classes."""
    return t_norm * (logits.std(dim=1, keepdim=True, correction=1) + eps)


def norm_kd_loss(student_logits: Tensor, teacher_logits: Tensor, t_norm: float) -> Tensor:
    """Mean over the batch of τ_t² KL(p_t || p_s), each softmax at its own network's τ (eq. 8, as the NormKD authors
    run it).

    Both logits are (B, K). The student's σ stays in the graph. Computed in float32, because τ² and KL of half-precision
    logits lose the small differences that this loss consists of.
    """
    student, teacher = student_logits.float(), teacher_logits.float()
    tau_student = normalised_temperature(student, t_norm)
    tau_teacher = normalised_temperature(teacher, t_norm)
    divergence = functional.kl_div(
        functional.log_softmax(student / tau_student, dim=1),
        functional.log_softmax(teacher / tau_teacher, dim=1),
        reduction="none",
        log_target=True,
    ).sum(dim=1, keepdim=True)
    return (tau_teacher.square() * divergence).mean()


class NormKDSettings(Settings):
    """Names in the paper and in NormKD: `cross_entropy_weight` a, `distillation_weight` b, `t_norm` T_norm."""

    t_norm: float = Field(default=1.2, gt=0.0)
    """1.2 gives 8 classes the ceiling on the target's confidence that NormKD's T=2 gives 100 classes (DECISIONS.md)."""
    cross_entropy_weight: float = Field(default=0.1, ge=0.0)
    distillation_weight: float = Field(default=0.9, ge=0.0)


class NormKD(Method):
    """L = a CE(z_s, y) + b mean_i[(T_norm σ_t,i)² KL(p_t,i || p_s,i)]."""

    Settings: ClassVar[type[Settings]] = NormKDSettings
    needs_maps: ClassVar[bool] = False
    teacher_reads = (LOGITS,)

    def __init__(
        self, t_norm: float = 1.2, cross_entropy_weight: float = 0.1, distillation_weight: float = 0.9
    ) -> None:
        super().__init__()
        self.t_norm = t_norm
        self.cross_entropy_weight = cross_entropy_weight
        self.distillation_weight = distillation_weight

    @classmethod
    def build(cls, settings: Any, context: MethodContext) -> NormKD:
        return cls(settings.t_norm, settings.cross_entropy_weight, settings.distillation_weight)

    def forward(self, inputs: StepInputs) -> dict[str, Tensor]:
        assert inputs.teacher_logits is not None
        cross_entropy = functional.cross_entropy(inputs.student_logits.float(), inputs.labels)
        distillation = norm_kd_loss(inputs.student_logits, inputs.teacher_logits, self.t_norm)
        loss = self.cross_entropy_weight * cross_entropy + self.distillation_weight * distillation
        with torch.no_grad():
            spread = normalised_temperature(inputs.teacher_logits.float(), self.t_norm).std()
        return {
            "loss": loss,
            "cross_entropy": cross_entropy.detach(),
            "norm_kd": distillation.detach(),
            "teacher_temperature_spread": spread,
        }
