"""Vanilla-KD: distillation of softened logits (Hinton et al., arXiv 1503.02531; the DSP-KD paper's baseline on logits).

Defaults: T = 4, a = 0.1, b = 0.9, the CIFAR values of mdistiller and of NormKD's repository. The paper names none;
other frameworks have T = 1 with weight 3 (MMRazor), T = 1 with 0.5 / 0.5 (cls_KD on ImageNet), T = 4 with 1 / 1 (timm).
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from dspkd.distill.base import LOGITS, Method, MethodContext, Settings, StepInputs

__all__ = ["VanillaKD", "softened_divergence"]


def softened_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² mean_i KL( softmax(z_t / T) || softmax(z_s / T) ): two (B, K) -> a scalar, in float32.

    The mean is over the batch alone. Dividing by the number of classes too, as `reduction="mean"` does, would make the
    term K times weaker. T² keeps its gradient of the same size at every temperature (Hinton, section 2).
    """
    divergence = functional.kl_div(
        functional.log_softmax(student_logits.float() / temperature, dim=1),
        functional.log_softmax(teacher_logits.float() / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * divergence


class VanillaKDSettings(Settings):
    """`cross_entropy_weight` a, `distillation_weight` b, `temperature` T."""

    temperature: float = Field(default=4.0, gt=0.0)
    cross_entropy_weight: float = Field(default=0.1, ge=0.0)
    distillation_weight: float = Field(default=0.9, ge=0.0)


class VanillaKD(Method):
    """L = a CE(z_s, y) + b T² mean_i KL( p_t,i^T || p_s,i^T )."""

    Settings: ClassVar[type[Settings]] = VanillaKDSettings
    needs_maps: ClassVar[bool] = False
    teacher_reads = (LOGITS,)

    def __init__(self, settings: VanillaKDSettings) -> None:
        super().__init__()
        self.settings = settings

    @classmethod
    def build(cls, settings: Any, context: MethodContext) -> VanillaKD:
        return cls(settings)

    def forward(self, inputs: StepInputs) -> dict[str, Tensor]:
        assert inputs.teacher_logits is not None
        settings = self.settings
        cross_entropy = functional.cross_entropy(inputs.student_logits.float(), inputs.labels)
        distillation = softened_divergence(inputs.student_logits, inputs.teacher_logits, settings.temperature)
        loss = settings.cross_entropy_weight * cross_entropy + settings.distillation_weight * distillation
        return {"loss": loss, "cross_entropy": cross_entropy.detach(), "vanilla_kd": distillation.detach()}
