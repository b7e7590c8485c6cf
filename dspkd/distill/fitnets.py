"""FitNets: hints from the teacher's middle (Romero et al., ICLR 2015, arXiv 1412.6550).

As most code has it, in one stage: cross-entropy plus β = 100 times the mean squared error at a middle layer
(mdistiller, RepDistiller), here at stride 16. The paper has two stages; with `cross_entropy_weight = 0` this method is
the first of them, since then only the layers up to the hint get a gradient, and `vanilla_kd` the second (preset
`fitnets_two_stage`). Our regressor has no ReLU: the middle maps of EfficientNet and ConvNeXt have negative values.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from dspkd.distill.base import Method, MethodContext, Settings, StepInputs
from dspkd.distill.features import layer_normalised, needs_normalising, resized

__all__ = ["FitNets"]

STRIDES = (4, 8, 16, 32)


class FitNetsSettings(Settings):
    """`hint_weight` β, `stride` of the two maps that are compared."""

    hint_weight: float = Field(default=100.0, ge=0.0)
    cross_entropy_weight: float = Field(default=1.0, ge=0.0)
    stride: Literal[4, 8, 16, 32] = 16
    normalise_target: bool | None = None
    """Layer-normalise the teacher's map over its channels. None: only for ConvNeXt."""


class FitNets(Method):
    """L = a CE(z_s, y) + β mean_{i,c,h,w} (F_t - r(F_s))², r a 1x1 convolution with batch norm."""

    Settings: ClassVar[type[Settings]] = FitNetsSettings

    def __init__(self, settings: FitNetsSettings, context: MethodContext) -> None:
        super().__init__()
        level = STRIDES.index(settings.stride)
        self.settings = settings
        self.normalise_target = needs_normalising(context.teacher_name, settings.normalise_target)
        self.student_layer, self.teacher_layer = context.student_levels[level], context.teacher_levels[level]
        self.student_taps, self.teacher_taps = (self.student_layer,), (self.teacher_layer,)
        self.teacher_reads = self.teacher_taps
        own = context.student_shapes[self.student_layer][0]
        channels = context.teacher_shapes[self.teacher_layer][0]
        self.regressor = nn.Sequential(nn.Conv2d(own, channels, kernel_size=1, bias=False), nn.BatchNorm2d(channels))

    @classmethod
    def build(cls, settings: Any, context: MethodContext) -> FitNets:
        return cls(settings, context)

    def forward(self, inputs: StepInputs) -> dict[str, Tensor]:
        target = inputs.teacher_maps[self.teacher_layer]
        if self.normalise_target:
            target = layer_normalised(target)
        regressed = resized(self.regressor(inputs.student_maps[self.student_layer]), like=target)
        hint = self.settings.hint_weight * functional.mse_loss(regressed.float(), target.float())
        terms = {"hint": hint.detach()}
        if self.settings.cross_entropy_weight == 0.0:
            # Not 0 times the cross-entropy: with gradients of 0, weight decay would shrink the layers behind the hint.
            return {"loss": hint, **terms}
        cross_entropy = functional.cross_entropy(inputs.student_logits.float(), inputs.labels)
        loss = self.settings.cross_entropy_weight * cross_entropy + hint
        return {"loss": loss, "cross_entropy": cross_entropy.detach(), **terms}
