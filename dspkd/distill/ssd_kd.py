"""SSD-KD: self-supervised diverse knowledge distillation (Wang et al., MedIA 2023), made for skin lesions.

Every image is seen in four rotations; a stage `ssd_head` before has fitted the teacher's projection head. Weights,
temperatures and the share of wrong rows are those of the authors' code (`isic_ssd_kd.py`), which has them from SSKD (Xu
et al., ECCV 2020). Differences to that code: one random view is rotated, where they augment each rotation anew; and
feature maps are read by `FeatureTaps`, where they add new hooks at every step and never remove one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from dspkd.distill.base import Method, MethodContext, Settings, StepInputs, class_weights, submodule_state
from dspkd.distill.d_kd import DualRelations, RelationSettings
from dspkd.distill.features import pooled
from dspkd.distill.ssd_head import ProjectionHead, four_rotations, similarity_rows, similarity_targets
from dspkd.distill.vanilla_kd import softened_divergence

__all__ = ["SSDKD", "kept_rows"]


@torch.no_grad()
def kept_rows(teacher_rows: Tensor, wrong_share: float) -> Tensor:
    """Indices of the rows (3 B, B) that are worth learning from: all that the teacher has right, and of its wrong ones
    the ⌊`wrong_share` · number⌋ in which the right original ranks highest.
    """
    own = teacher_rows.gather(1, similarity_targets(teacher_rows)[:, None])
    rank = (teacher_rows > own).sum(dim=1)
    wrong = int((rank > 0).sum())
    keep = len(rank) - wrong + int(wrong_share * wrong)
    return rank.argsort(stable=True)[:keep]


class SSDKDSettings(RelationSettings):
    """`temperature` of the logits, `similarity_temperature` of the rows of cosines; weight 0 switches a term off."""

    temperature: float = Field(default=4.0, gt=0.0)
    similarity_temperature: float = Field(default=0.5, gt=0.0)
    cross_entropy_weight: float = Field(default=0.1, ge=0.0)
    distillation_weight: float = Field(default=0.9, ge=0.0)
    rotated_weight: float = Field(default=2.7, ge=0.0)
    similarity_weight: float = Field(default=10.0, ge=0.0)
    wrong_share: float = Field(default=0.75, ge=0.0, le=1.0)


class SSDKD(Method):
    """L = 0.1 WCE(z_s, y) + 0.9 KD_4(originals) + 2.7 KD_4(rotated) + 10 KD_0.5(similarity rows)
    + λ_drkd DRKD + λ_crkd CRKD, the relations over all four rotations; KD_T = T² mean KL(teacher || student).
    """

    Settings: ClassVar[type[Settings]] = SSDKDSettings
    couples_images: ClassVar[bool] = True
    class_weights: Tensor | None

    def __init__(self, settings: SSDKDSettings, context: MethodContext) -> None:
        super().__init__()
        self.settings = settings
        self.student_final, self.teacher_final = context.student_final, context.teacher_final
        self.student_taps, self.teacher_taps = (context.student_final,), (context.teacher_final,)
        self.relations = DualRelations(settings, context)
        self.student_head = ProjectionHead(context.student_shapes[context.student_final][0])
        self.student_head.requires_grad_(settings.similarity_weight > 0)
        self.teacher_head = ProjectionHead(context.teacher_shapes[context.teacher_final][0]).requires_grad_(False)
        self.register_buffer("class_weights", class_weights(context.class_shares), persistent=False)

    @classmethod
    def build(cls, settings: Any, context: MethodContext) -> SSDKD:
        return cls(settings, context)

    @classmethod
    def predecessor(cls, settings: Any) -> str | None:
        return "ssd_head" if settings.similarity_weight else None

    def inherit(self, state: Mapping[str, Tensor]) -> None:
        self.teacher_head.load_state_dict(submodule_state(state, "teacher_head"))

    def views(self, images: Tensor) -> Tensor:
        return four_rotations(images)

    def forward(self, inputs: StepInputs) -> dict[str, Tensor]:
        assert inputs.teacher_logits is not None
        settings, originals = self.settings, len(inputs.labels)
        student, teacher = inputs.student_logits, inputs.teacher_logits
        student_map = inputs.student_maps[self.student_final]
        teacher_map = inputs.teacher_maps[self.teacher_final]
        cross_entropy = functional.cross_entropy(student[:originals].float(), inputs.labels, self.class_weights)
        original = softened_divergence(student[:originals], teacher[:originals], settings.temperature)
        rotated = softened_divergence(student[originals:], teacher[originals:], settings.temperature)
        relations, terms = self.relations(student_map, teacher_map)
        loss = (
            settings.cross_entropy_weight * cross_entropy
            + settings.distillation_weight * original
            + settings.rotated_weight * rotated
            + relations
        )
        if settings.similarity_weight:
            similarity = self._similarity(student_map, teacher_map)
            loss = loss + settings.similarity_weight * similarity
            terms["similarity"] = similarity.detach()
        return {
            "loss": loss,
            "cross_entropy": cross_entropy.detach(),
            "vanilla_kd": original.detach(),
            "rotated_kd": rotated.detach(),
            **terms,
        }

    def _similarity(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """T² mean KL over the kept rows of cosines, T = 0.5."""
        theirs = similarity_rows(self.teacher_head(pooled(teacher_map)))
        own = similarity_rows(self.student_head(pooled(student_map)))
        kept = kept_rows(theirs, self.settings.wrong_share)
        return softened_divergence(own[kept], theirs[kept], self.settings.similarity_temperature)
