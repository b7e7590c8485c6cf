"""EML-style mutual learning: student and teacher architecture learn together, through an ensemble and a fusion branch.

A reconstruction, not the published method. Embedded mutual learning (Li et al., Applied Intelligence 53, 2023) has no
public code, and its text was not at hand. This is built from the description in the DSP-KD paper (section 2.2:
"ensemble and adaptive fusion branches between two parallel peer networks"), from the abstracts, and from feature fusion
learning (FFL, Kim et al., ICPR 2020), whose temperature, ramp, fusion block and detached targets it has. Peer 2 begins
as the fitted teacher and is trained, too; it is not kept. FFL trains the fusion block with an optimiser of its own
(weight decay 1e-5); here one optimiser trains everything.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from dspkd.distill.base import Method, MethodContext, Settings, StepInputs
from dspkd.distill.features import pooled, resized
from dspkd.distill.vanilla_kd import softened_divergence

__all__ = ["EML", "FusionBranch", "ramp"]

RAMP_SHARE = 80 / 300


def ramp(progress: float) -> float:
    """r = exp(-5 (1 - p / p_r)²) for p < p_r, then 1: FFL's ramp over 80 of 300 epochs, here over that share of the
    stage, step by step.
    """
    return math.exp(-5.0 * (1.0 - min(progress / RAMP_SHARE, 1.0)) ** 2)


class FusionBranch(nn.Module):
    """Two last maps (B, C_1, H, W), (B, C_2, H', W') -> logits (B, K) of the adaptive fusion branch.

    The second is aligned to C_1 channels; both together pass a depthwise 3x3 and a 1x1 convolution (2 C_1 -> C_1), each
    with batch norm and ReLU, then a gate over the channels (squeeze and excitation, the "adaptive" part), then pooling
    and a linear layer.
    """

    def __init__(self, channels: int, other_channels: int, num_classes: int, reduction: int = 16) -> None:
        super().__init__()
        both, narrow = 2 * channels, max(1, channels // reduction)
        self.align = nn.Conv2d(other_channels, channels, kernel_size=1, bias=False)
        self.fuse = nn.Sequential(
            nn.Conv2d(both, both, kernel_size=3, padding=1, groups=both, bias=False),
            nn.BatchNorm2d(both),
            nn.ReLU(),
            nn.Conv2d(both, channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
        self.gate = nn.Sequential(nn.Linear(channels, narrow), nn.ReLU(), nn.Linear(narrow, channels), nn.Sigmoid())
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        fused = pooled(self.fuse(torch.cat([own, resized(self.align(other), like=own)], dim=1)))
        # Gating the channels of a map and pooling it is the same as gating the pooled vector.
        logits: Tensor = self.classifier(fused * self.gate(fused))
        return logits


class EMLSettings(Settings):
    temperature: float = Field(default=3.0, gt=0.0)
    mutual_weight: float = Field(default=1.0, ge=0.0)
    """Weight of the terms between the two peers; 0 leaves FFL."""


class EML(Method):
    """L = Σ_{k in 1, 2, f} CE(z_k, y) + r(e) [KD(z_f -> z_1) + KD(z_f -> z_2) + KD(z_e -> z_f)]
    + r(e) [KD(z_2 -> z_1) + KD(z_1 -> z_2)].

    z_1 student, z_2 peer, z_f fusion branch, z_e = (z_1 + z_2) / 2; KD(a -> b) = T² mean KL(p_a || p_b), a detached.
    """

    Settings: ClassVar[type[Settings]] = EMLSettings
    teacher_learns: ClassVar[bool] = True

    def __init__(self, settings: EMLSettings, context: MethodContext) -> None:
        super().__init__()
        self.settings = settings
        self.student_final, self.teacher_final = context.student_final, context.teacher_final
        self.student_taps, self.teacher_taps = (context.student_final,), (context.teacher_final,)
        self.fusion = FusionBranch(
            context.student_shapes[context.student_final][0],
            context.teacher_shapes[context.teacher_final][0],
            context.num_classes,
        )

    @classmethod
    def build(cls, settings: Any, context: MethodContext) -> EML:
        return cls(settings, context)

    def forward(self, inputs: StepInputs) -> dict[str, Tensor]:
        assert inputs.teacher_logits is not None
        student, peer = inputs.student_logits.float(), inputs.teacher_logits.float()
        fused = self.fusion(inputs.student_maps[self.student_final], inputs.teacher_maps[self.teacher_final]).float()
        ensemble = (student + peer) / 2
        cross_entropy = functional.cross_entropy(student, inputs.labels)
        peer_cross_entropy = functional.cross_entropy(peer, inputs.labels)
        fused_cross_entropy = functional.cross_entropy(fused, inputs.labels)
        through_fusion = self._kd(fused, student) + self._kd(fused, peer) + self._kd(ensemble, fused)
        mutual = self._kd(peer, student) + self._kd(student, peer)
        rate = ramp(inputs.progress)
        return {
            "loss": cross_entropy
            + peer_cross_entropy
            + fused_cross_entropy
            + rate * through_fusion
            + rate * self.settings.mutual_weight * mutual,
            "cross_entropy": cross_entropy.detach(),
            "peer_cross_entropy": peer_cross_entropy.detach(),
            "fused_cross_entropy": fused_cross_entropy.detach(),
            "fusion_kd": through_fusion.detach(),
            "mutual_kd": mutual.detach(),
        }

    def _kd(self, source: Tensor, learner: Tensor) -> Tensor:
        return softened_divergence(learner, source.detach(), self.settings.temperature)
