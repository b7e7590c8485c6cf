"""MGD: masked generative distillation (Yang et al., ECCV 2022), as its authors run it for classification.

There the mask hides whole channels, λ = 0.15, on the last map alone, α = 7e-5 for 512x7x7; the paper's text and the
DSP-KD paper (eq. 2) describe a mask over places. `mask` chooses; "none" is the control that shows what the generation
block does without any mask.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from dspkd.distill.base import Method, MethodContext, Settings, StepInputs
from dspkd.distill.features import layer_normalised, needs_normalising, resized
from dspkd.distill.generation import GenerationBlock, GeneratorWidth, default_alpha, random_mask, reconstruction_loss

__all__ = ["MGD"]


class MGDSettings(Settings):
    """`alpha` α, `hidden_fraction` λ."""

    alpha: float | None = Field(default=None, ge=0.0)
    """None: 7e-5 scaled to the teacher's map, see `default_alpha`."""
    mask: Literal["channel", "spatial", "none"] = "channel"
    hidden_fraction: float = Field(default=0.15, ge=0.0, le=1.0)
    """0.15 is the value of the classification code; for detection, where the mask is spatial, it is 0.65."""
    generator_width: GeneratorWidth = "full"
    normalise_target: bool | None = None
    """Layer-normalise the teacher's map over its channels. None: only for ConvNeXt."""


class MGD(Method):
    """L = CE(z_s, y) + α (1/B) Σ_{c,h,w} (G(align(F_s) ⊙ M) - F_t)²."""

    Settings: ClassVar[type[Settings]] = MGDSettings

    def __init__(self, settings: MGDSettings, context: MethodContext) -> None:
        super().__init__()
        own = context.student_shapes[context.student_final][0]
        channels, height, width = context.teacher_shapes[context.teacher_final]
        self.settings = settings
        self.alpha = settings.alpha if settings.alpha is not None else default_alpha(channels, height, width)
        self.normalise_target = needs_normalising(context.teacher_name, settings.normalise_target)
        self.student_final, self.teacher_final = context.student_final, context.teacher_final
        self.student_taps, self.teacher_taps = (context.student_final,), (context.teacher_final,)
        self.teacher_reads = self.teacher_taps
        self.align = nn.Conv2d(own, channels, kernel_size=1) if own != channels else nn.Identity()
        self.generation = GenerationBlock(channels, settings.generator_width, nn.ReLU)

    @classmethod
    def build(cls, settings: Any, context: MethodContext) -> MGD:
        return cls(settings, context)

    def mask(self, aligned: Tensor) -> Tensor | None:
        """M: (B, C, 1, 1) per channel, (B, 1, H, W) per place, None to hide nothing."""
        batch, channels, height, width = aligned.shape
        if self.settings.mask == "none":
            return None
        shape = (batch, channels, 1, 1) if self.settings.mask == "channel" else (batch, 1, height, width)
        return random_mask(shape, self.settings.hidden_fraction, aligned.device)

    def forward(self, inputs: StepInputs) -> dict[str, Tensor]:
        target = inputs.teacher_maps[self.teacher_final]
        if self.normalise_target:
            target = layer_normalised(target)
        aligned = resized(self.align(inputs.student_maps[self.student_final]), like=target)
        mask = self.mask(aligned)
        masked = aligned if mask is None else aligned * mask.to(aligned.dtype)
        rebuilt = self.alpha * reconstruction_loss(self.generation(masked), target)
        cross_entropy = functional.cross_entropy(inputs.student_logits.float(), inputs.labels)
        return {
            "loss": cross_entropy + rebuilt,
            "cross_entropy": cross_entropy.detach(),
            "reconstruction": rebuilt.detach(),
        }
