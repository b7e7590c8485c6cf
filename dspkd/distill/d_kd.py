"""D-KD: the dual-relational part of SSD-KD, without self-supervision (Wang et al., MedIA 2023; defaults of its code).

Soft labels, relations between samples (DRKD) and relations between channels (CRKD). A weight of 0 switches a part off.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from dspkd.distill.base import LOGITS, Method, MethodContext, Settings, StepInputs, class_weights
from dspkd.distill.features import layer_normalised, needs_normalising, pooled, resized
from dspkd.distill.relations import (
    ChannelRegressor,
    angle_relation_loss,
    channel_relation_loss,
    distance_relation_loss,
)
from dspkd.distill.vanilla_kd import softened_divergence

__all__ = ["DKD", "DualRelations", "RelationSettings"]


class RelationSettings(Settings):
    """Weights of the relations: DRKD = `distance_weight` · distances + `angle_weight` · angles; λ_drkd; λ_crkd."""

    distance_weight: float = Field(default=25.0, ge=0.0)
    angle_weight: float = Field(default=50.0, ge=0.0)
    drkd_weight: float = Field(default=1.0, ge=0.0)
    crkd_weight: float = Field(default=1000.0, ge=0.0)
    """1000 as in the authors' scripts; their class has 10 000 by default."""
    normalise_target: bool | None = None
    """Layer-normalise the teacher's map over its channels. None: only for ConvNeXt."""


class DualRelations(nn.Module):
    """λ_drkd (25 L_distance + 50 L_angle) + λ_crkd L_channel, on the last maps of both networks."""

    def __init__(self, settings: RelationSettings, context: MethodContext) -> None:
        super().__init__()
        self.settings = settings
        self.normalise_target = needs_normalising(context.teacher_name, settings.normalise_target)
        own, channels = (
            context.student_shapes[context.student_final][0],
            context.teacher_shapes[context.teacher_final][0],
        )
        self.regressor = ChannelRegressor(own, channels) if settings.crkd_weight else None

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Two last maps (N, C_s, H, W) and (N, C_t, H, W) -> the weighted sum, and its two terms for the log."""
        settings = self.settings
        teacher = layer_normalised(teacher) if self.normalise_target else teacher
        total = student.new_zeros((), dtype=torch.float32)
        terms: dict[str, Tensor] = {}
        if settings.drkd_weight:
            drkd = settings.distance_weight * distance_relation_loss(pooled(student), pooled(teacher))
            drkd = drkd + settings.angle_weight * angle_relation_loss(pooled(student), pooled(teacher))
            total = total + settings.drkd_weight * drkd
            terms["drkd"] = drkd.detach()
        if self.regressor is not None:
            crkd = channel_relation_loss(resized(self.regressor(student), like=teacher), teacher)
            total = total + settings.crkd_weight * crkd
            terms["crkd"] = crkd.detach()
        return total, terms


class DKDSettings(RelationSettings):
    """`cross_entropy_weight` 1 - λ, `distillation_weight` λ, `temperature` T."""

    temperature: float = Field(default=5.0, gt=0.0)
    cross_entropy_weight: float = Field(default=0.5, ge=0.0)
    distillation_weight: float = Field(default=0.5, ge=0.0)


class DKD(Method):
    """L = 0.5 WCE(z_s, y) + 0.5 T² mean_i KL( p_t,i^T || p_s,i^T ) + λ_drkd DRKD + λ_crkd CRKD.

    WCE weighs a class by 1 / its share of what training draws. With `data.balance = 1` these are equal, and WCE is CE:
    the sampler has done the weighting.
    """

    Settings: ClassVar[type[Settings]] = DKDSettings
    couples_images: ClassVar[bool] = True
    class_weights: Tensor | None

    def __init__(self, settings: DKDSettings, context: MethodContext) -> None:
        super().__init__()
        self.settings = settings
        self.student_final, self.teacher_final = context.student_final, context.teacher_final
        self.student_taps, self.teacher_taps = (context.student_final,), (context.teacher_final,)
        self.teacher_reads = (LOGITS, context.teacher_final)
        self.relations = DualRelations(settings, context)
        self.register_buffer("class_weights", class_weights(context.class_shares), persistent=False)

    @classmethod
    def build(cls, settings: Any, context: MethodContext) -> DKD:
        return cls(settings, context)

    def forward(self, inputs: StepInputs) -> dict[str, Tensor]:
        assert inputs.teacher_logits is not None
        settings = self.settings
        cross_entropy = functional.cross_entropy(inputs.student_logits.float(), inputs.labels, self.class_weights)
        distillation = softened_divergence(inputs.student_logits, inputs.teacher_logits, settings.temperature)
        relations, terms = self.relations(
            inputs.student_maps[self.student_final], inputs.teacher_maps[self.teacher_final]
        )
        return {
            "loss": settings.cross_entropy_weight * cross_entropy
            + settings.distillation_weight * distillation
            + relations,
            "cross_entropy": cross_entropy.detach(),
            "vanilla_kd": distillation.detach(),
            **terms,
        }
