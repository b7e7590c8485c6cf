"""Distillation methods. To add one: write one file with a `Method`, and add one line to `METHODS`."""

from dspkd.distill.base import Method, MethodContext, StepInputs
from dspkd.distill.cross_entropy import CrossEntropy
from dspkd.distill.d_kd import DKD
from dspkd.distill.dsp_kd_joint import DSPKDJoint
from dspkd.distill.eml import EML
from dspkd.distill.fitnets import FitNets
from dspkd.distill.hf_fit import HFFit
from dspkd.distill.hf_masked_generation import HFMaskedGeneration
from dspkd.distill.mgd import MGD
from dspkd.distill.norm_kd import NormKD
from dspkd.distill.ssd_head import SSDHead
from dspkd.distill.ssd_kd import SSDKD
from dspkd.distill.vanilla_kd import VanillaKD
from dspkd.distill.wsld import WSLD

__all__ = ["METHODS", "Method", "MethodContext", "StepInputs"]

METHODS: dict[str, type[Method]] = {
    "cross_entropy": CrossEntropy,
    "hf_masked_generation": HFMaskedGeneration,
    "norm_kd": NormKD,
    "dsp_kd_joint": DSPKDJoint,
    "hf_fit": HFFit,
    "vanilla_kd": VanillaKD,
    "wsld": WSLD,
    "fitnets": FitNets,
    "mgd": MGD,
    "eml": EML,
    "d_kd": DKD,
    "ssd_head": SSDHead,
    "ssd_kd": SSDKD,
}
