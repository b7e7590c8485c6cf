"""Stage 1 of DSP-KD: hide the places that matter to the teacher, and let the student rebuild the teacher's map.

Paper section 3.2, equations 3 to 5; the generation block and α follow MGD (ECCV 2022) with GELU for ReLU.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from dspkd.distill.base import Method, MethodContext, Settings, StepInputs
from dspkd.distill.hf_attention import hf_attention, hf_mask

__all__ = ["GenerationBlock", "HFMaskedGeneration", "default_alpha", "reconstruction_loss"]

MGD_ALPHA = 7e-5
MGD_MAP_ELEMENTS = 512 * 7 * 7


def default_alpha(channels: int, height: int, width: int) -> float:
    """α = 7e-5 · 512·49 / (C_t H W): MGD's published weight, for which its sum over a 512x7x7 map was tuned, at
    any size.
    """
    return MGD_ALPHA * MGD_MAP_ELEMENTS / (channels * height * width)


def reconstruction_loss(rebuilt: Tensor, target: Tensor) -> Tensor:
    """(1/B) Σ_{c,h,w} (Y - F_T)² of two (B, C, H, W) maps, summed in float32: 100,000 squares overflow half
    precision.
    """
    return (rebuilt.float() - target.float()).square().sum() / target.shape[0]


class GenerationBlock(nn.Sequential):
    """ξ_Conv of eq. 4: 3x3 convolution, GELU, 3x3 convolution (figure 4); (B, C, H, W) -> (B, C, H, W).

    `width` narrows the layer between the two convolutions; None keeps it at C as published.
    """

    def __init__(self, channels: int, width: int | None = None) -> None:
        inner = width or channels
        super().__init__(
            nn.Conv2d(channels, inner, kernel_size=3, padding=1),
            nn.GELU(),
            nn.Conv2d(inner, channels, kernel_size=3, padding=1),
        )


class HFMaskedGenerationSettings(Settings):
    """Names in the paper: `alpha` α, `threshold` φ; `mimic_weight` is the weight η of the unmasked term (eq. 1)."""

    alpha: float | None = Field(default=None, ge=0.0)
    """None: `default_alpha` of the teacher's map."""
    threshold: float = 1.0
    hide: Literal["important", "unimportant"] = "important"
    hidden_fraction: float | None = Field(default=None, ge=0.0, le=1.0)
    generator_width: int | None = Field(default=None, ge=1)
    mimic_weight: float = Field(default=0.0, ge=0.0)
    cross_entropy_weight: float = Field(default=1.0, ge=0.0)
    normalise_target: bool | None = None
    """Layer-normalise the teacher's map over its channels. None: only for ConvNeXt, whose raw map has a few huge
    channels.
    """


class HFMaskedGeneration(Method):
    """L1 = CE + α (1/B) Σ (ξ(align(S) ⊙ M^HF) - F_T)² [+ η (1/B) Σ (align(S) - F_T)²]."""

    Settings: ClassVar[type[Settings]] = HFMaskedGenerationSettings

    def __init__(self, settings: HFMaskedGenerationSettings, context: MethodContext) -> None:
        super().__init__()
        student_channels = context.student_shapes[context.student_final][0]
        channels, height, width = context.teacher_shapes[context.teacher_final]
        self.settings = settings
        self.alpha = settings.alpha if settings.alpha is not None else default_alpha(channels, height, width)
        self.normalise_target = (
            settings.normalise_target if settings.normalise_target is not None else "convnext" in context.teacher_name
        )
        self.levels = context.teacher_levels
        self.student_final, self.teacher_final = context.student_final, context.teacher_final
        self.student_taps = (context.student_final,)
        self.teacher_taps = (*context.teacher_levels, context.teacher_final)
        self.align = nn.Conv2d(student_channels, channels, kernel_size=1)
        self.generation = GenerationBlock(channels, settings.generator_width)

    @classmethod
    def build(cls, settings: Any, context: MethodContext) -> HFMaskedGeneration:
        return cls(settings, context)

    @torch.no_grad()
    def mask(self, teacher_maps: Any) -> Tensor:
        """M^HF of a batch at the size of the teacher's final map, (B, 1, H, W)."""
        size = teacher_maps[self.teacher_final].shape[2:]
        attention = hf_attention([teacher_maps[level] for level in self.levels], (size[0], size[1]))
        return hf_mask(
            attention,
            threshold=self.settings.threshold,
            hide=self.settings.hide,
            hidden_fraction=self.settings.hidden_fraction,
        )

    def forward(self, inputs: StepInputs) -> dict[str, Tensor]:
        target = inputs.teacher_maps[self.teacher_final]
        if self.normalise_target:
            target = functional.layer_norm(target.float().movedim(1, -1), target.shape[1:2]).movedim(-1, 1)
        aligned = self.align(inputs.student_maps[self.student_final])
        if aligned.shape[2:] != target.shape[2:]:
            aligned = functional.interpolate(aligned, size=target.shape[2:], mode="bilinear", align_corners=False)
        mask = self.mask(inputs.teacher_maps)
        rebuilt = reconstruction_loss(self.generation(aligned * mask.to(aligned.dtype)), target)
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
