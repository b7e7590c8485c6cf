"""Stage 1 of DSP-KD: hide the places that matter to the teacher, and let the student rebuild the teacher's map.

Paper section 3.2, equations 3 to 5; the generation block and α follow MGD (ECCV 2022) with GELU for ReLU. Where the
paper can be read in several ways a setting chooses, and the default is the reading that DECISIONS.md gives reasons for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from dspkd.distill.base import HF_ATTENTION, Method, MethodContext, Settings, StepInputs, submodule_state
from dspkd.distill.features import layer_normalised, needs_normalising, resized
from dspkd.distill.generation import GenerationBlock, GeneratorWidth, default_alpha, reconstruction_loss
from dspkd.distill.hf_attention import hf_attention, hf_mask, shuffled_mask
from dspkd.distill.hf_convolutional import ConvolutionalHF

__all__ = ["HFMaskedGeneration", "HFMaskedGenerationSettings"]


class HFMaskedGenerationSettings(Settings):
    """Names in the paper: `alpha` α, `threshold` φ; `mimic_weight` is the weight η of the unmasked term (eq. 1)."""

    alpha: float | None = Field(default=None, ge=0.0)
    """None: `default_alpha` of the teacher's map."""
    mask: Literal["hf", "random", "none"] = "hf"
    """random: as many places of each image as the HF mask would hide, chosen blindly; none: nothing is hidden. Both are
    controls for what the HF mask contributes.
    """
    hf: Literal["parameter_free", "fitted", "random_frozen"] = "parameter_free"
    """fitted: with 1x1 convolutions, fitted by a stage `hf_fit` right before; random_frozen: the same, never fitted."""
    threshold: float = 1.0
    hide: Literal["important", "unimportant"] = "important"
    hidden_fraction: float | None = Field(default=None, ge=0.0, le=1.0)
    """Hide exactly this share of each image's places instead of those above the threshold."""
    generator_width: GeneratorWidth = 256
    """full, as published, was measured to be no better for several times the training time (DECISIONS.md)."""
    mimic_weight: float = Field(default=0.0, ge=0.0)
    cross_entropy_weight: float = Field(default=1.0, ge=0.0)
    normalise_target: bool | None = None
    """Layer-normalise the teacher's map over its channels. None: only for ConvNeXt, whose raw map has a few huge
    channels.
    """

    @model_validator(mode="after")
    def _hf_is_used(self) -> HFMaskedGenerationSettings:
        if self.mask == "none" and (self.hf != "parameter_free" or self.hidden_fraction is not None):
            raise ValueError('hf and hidden_fraction have no effect with mask = "none"')
        return self


class HFMaskedGeneration(Method):
    """L1 = CE + α (1/B) Σ (ξ(align(S) ⊙ M^HF) - F_T)² [+ η (1/B) Σ (align(S) - F_T)²]."""

    Settings: ClassVar[type[Settings]] = HFMaskedGenerationSettings

    def __init__(self, settings: HFMaskedGenerationSettings, context: MethodContext) -> None:
        super().__init__()
        student_channels = context.student_shapes[context.student_final][0]
        channels, height, width = context.teacher_shapes[context.teacher_final]
        self.settings = settings
        self.alpha = settings.alpha if settings.alpha is not None else default_alpha(channels, height, width)
        self.normalise_target = needs_normalising(context.teacher_name, settings.normalise_target)
        self.levels = context.teacher_levels if settings.mask != "none" else ()
        self.student_final, self.teacher_final = context.student_final, context.teacher_final
        self.student_taps = (context.student_final,)
        self.teacher_taps = (*self.levels, context.teacher_final)
        self.align = nn.Conv2d(student_channels, channels, kernel_size=1)
        self.generation = GenerationBlock(channels, settings.generator_width)
        self.hf: ConvolutionalHF | None = None
        if settings.hf != "parameter_free":
            widths = [context.teacher_shapes[level][0] for level in self.levels]
            self.hf = ConvolutionalHF(widths).requires_grad_(False)
        elif settings.mask == "none":
            self.teacher_reads = (context.teacher_final,)
        else:
            self.teacher_reads = (context.teacher_final, HF_ATTENTION)

    @classmethod
    def build(cls, settings: Any, context: MethodContext) -> HFMaskedGeneration:
        return cls(settings, context)

    @classmethod
    def predecessor(cls, settings: Any) -> str | None:
        return "hf_fit" if settings.hf == "fitted" else None

    def inherit(self, state: Mapping[str, Tensor]) -> None:
        assert self.hf is not None
        self.hf.load_state_dict(submodule_state(state, "hf"))

    def attention(self, teacher_maps: Mapping[str, Tensor]) -> Tensor:
        """A^HF of a batch at the size of the teacher's final map, (B, 1, H, W), computed or as it was stored."""
        if HF_ATTENTION in teacher_maps:
            return teacher_maps[HF_ATTENTION]
        target = teacher_maps[self.teacher_final]
        size = (target.shape[2], target.shape[3])
        levels = [teacher_maps[level] for level in self.levels]
        return self.hf(levels, size) if self.hf is not None else hf_attention(levels, size)

    def condensed(self, teacher_maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        final = {self.teacher_final: teacher_maps[self.teacher_final]}
        return final if self.settings.mask == "none" else {**final, HF_ATTENTION: self.attention(teacher_maps)}

    @torch.no_grad()
    def mask(self, teacher_maps: Mapping[str, Tensor]) -> Tensor:
        """M^HF of a batch at the size of the teacher's final map, (B, 1, H, W) (eq. 3)."""
        if self.settings.mask == "none":
            target = teacher_maps[self.teacher_final]
            return target.new_ones((target.shape[0], 1, *target.shape[2:]))
        mask = hf_mask(
            self.attention(teacher_maps),
            threshold=self.settings.threshold,
            hide=self.settings.hide,
            hidden_fraction=self.settings.hidden_fraction,
        )
        return shuffled_mask(mask) if self.settings.mask == "random" else mask

    def forward(self, inputs: StepInputs) -> dict[str, Tensor]:
        target = inputs.teacher_maps[self.teacher_final]
        mask = self.mask(inputs.teacher_maps)
        if self.normalise_target:
            target = layer_normalised(target)
        aligned = resized(self.align(inputs.student_maps[self.student_final]), like=target)  # f_adapt of eq. 1
        generated = self.generation(aligned * mask.to(aligned.dtype))  # G of eq. 4
        rebuilt = reconstruction_loss(generated, target)  # the sum of eq. 5
        cross_entropy = functional.cross_entropy(inputs.student_logits.float(), inputs.labels)
        loss = self.settings.cross_entropy_weight * cross_entropy + self.alpha * rebuilt
        terms = {
            "cross_entropy": cross_entropy.detach(),
            "reconstruction": self.alpha * rebuilt.detach(),
            "hidden_fraction": 1.0 - mask.mean(),
        }
        if self.settings.mimic_weight:
            mimic = self.settings.mimic_weight * reconstruction_loss(aligned, target)
            loss = loss + mimic
            terms["mimic"] = mimic.detach()
        return {"loss": loss, **terms}
