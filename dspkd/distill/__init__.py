"""Distillation methods. To add one: write one file with a `Method`, and add one line to `METHODS`."""

from dspkd.distill.base import Method, MethodContext, StepInputs
from dspkd.distill.cross_entropy import CrossEntropy
from dspkd.distill.hf_masked_generation import HFMaskedGeneration
from dspkd.distill.norm_kd import NormKD

__all__ = ["METHODS", "Method", "MethodContext", "StepInputs"]

METHODS: dict[str, type[Method]] = {
    "cross_entropy": CrossEntropy,
    "hf_masked_generation": HFMaskedGeneration,
    "norm_kd": NormKD,
}
