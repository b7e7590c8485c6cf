"""DSP-KD in one stage: the sum of the losses of its two stages. A control for what the order contributes; the paper has
none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from dspkd.distill.base import LOGITS, Method, MethodContext, Settings, StepInputs
from dspkd.distill.hf_masked_generation import HFMaskedGeneration, HFMaskedGenerationSettings
from dspkd.distill.norm_kd import NormKD, NormKDSettings

__all__ = ["DSPKDJoint"]


class DSPKDJointSettings(Settings):
    """The settings of the two stages, each under its own name."""

    hf_masked_generation: HFMaskedGenerationSettings = HFMaskedGenerationSettings()
    norm_kd: NormKDSettings = NormKDSettings()


class DSPKDJoint(Method):
    """L = L1 + L2, eq. 5 and eq. 8; each with the cross-entropy that it has as a stage."""

    Settings: ClassVar[type[Settings]] = DSPKDJointSettings

    def __init__(self, settings: DSPKDJointSettings, context: MethodContext) -> None:
        super().__init__()
        self.features = HFMaskedGeneration.build(settings.hf_masked_generation, context)
        self.logits = NormKD.build(settings.norm_kd, context)
        self.student_taps, self.teacher_taps = self.features.student_taps, self.features.teacher_taps
        if self.features.teacher_reads is not None:
            self.teacher_reads = (LOGITS, *self.features.teacher_reads)

    @classmethod
    def build(cls, settings: Any, context: MethodContext) -> DSPKDJoint:
        return cls(settings, context)

    @classmethod
    def predecessor(cls, settings: Any) -> str | None:
        return HFMaskedGeneration.predecessor(settings.hf_masked_generation)

    def inherit(self, state: Mapping[str, Tensor]) -> None:
        self.features.inherit(state)

    def condensed(self, teacher_maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.features.condensed(teacher_maps)

    def forward(self, inputs: StepInputs) -> dict[str, Tensor]:
        first, second = self.features(inputs), self.logits(inputs)
        return {**second, **first, "loss": first["loss"] + second["loss"]}
