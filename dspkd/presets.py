"""Named recipes: the stages of every method and of every row of the ablation, as plain data for a configuration.

All train the student for 240 epochs unless they say otherwise, so that each gets as many updates as the two stages of
DSP-KD together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dspkd.errors import ConfigError

__all__ = ["PRESETS", "Phase", "Preset", "preset_stages"]

EPOCHS = 240
LR = 0.01


@dataclass(frozen=True, slots=True)
class Phase:
    """One stage. `share` is of the preset's epochs, `rate` of its peak learning rate."""

    method: str
    share: float = 1.0
    rate: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    on_top: bool = False
    """The student is not trained in it, so its epochs do not count as the student's: they come on top."""


@dataclass(frozen=True, slots=True)
class Preset:
    purpose: str
    phases: tuple[Phase, ...]
    epochs: int = EPOCHS
    lr: float = LR


# The gradient of NormKD's loss is τ_t, about four, times that of cross-entropy, so that it has a quarter of the rate.
_FEATURES = Phase("hf_masked_generation", 0.5)
_LOGITS = Phase("norm_kd", 0.5, 0.25)
# The authors of SSD-KD fit the teacher's head for 60 epochs before 150 of the student; MasKD fits its tokens shortly.
_SSD_HEAD = Phase("ssd_head", 0.4, on_top=True)
_HF_FIT = Phase("hf_fit", 0.1, on_top=True)


def _dsp_kd(purpose: str, **settings: Any) -> Preset:
    """DSP-KD with another reading in stage 1."""
    first = replace(_FEATURES, settings=settings)
    fitted = (_HF_FIT,) if settings.get("hf") == "fitted" else ()
    return Preset(purpose, (*fitted, first, _LOGITS))


PRESETS: dict[str, Preset] = {
    "default": Preset("DSP-KD in our reading of the paper, 120 + 120 epochs", (_FEATURES, _LOGITS)),
    "matched": Preset(
        "DSP-KD, 60 + 60: as many updates as a student that is trained alone for 120 epochs", (_FEATURES, _LOGITS), 120
    ),
    "paper_literal": Preset(
        "DSP-KD with equation 8 as printed (no cross-entropy in stage 2), the full generation block, and learning rate "
        "0.001 in both stages",
        (
            replace(_FEATURES, settings={"generator_width": "full"}),
            Phase("norm_kd", 0.5, settings={"cross_entropy_weight": 0.0, "distillation_weight": 1.0}),
        ),
        lr=0.001,
    ),
    # The methods of tables 2 to 5.
    "vanilla_kd": Preset("Vanilla-KD", (Phase("vanilla_kd"),)),
    "wsld": Preset("WSLD", (Phase("wsld"),)),
    "fitnets": Preset("FitNets in one stage, as most code has it", (Phase("fitnets"),)),
    "fitnets_two_stage": Preset(
        "FitNets as its paper has it: hints for the lower layers, then Vanilla-KD",
        (Phase("fitnets", 0.25, settings={"cross_entropy_weight": 0.0}), Phase("vanilla_kd", 0.75)),
    ),
    "mgd": Preset("MGD with a mask over channels, as published for classification", (Phase("mgd"),)),
    "mgd_spatial": Preset("MGD with a mask over places", (Phase("mgd", settings={"mask": "spatial"}),)),
    "mgd_unmasked": Preset("MGD without a mask: the control", (Phase("mgd", settings={"mask": "none"}),)),
    "eml": Preset("EML-style mutual learning, a reconstruction", (Phase("eml"),)),
    "d_kd": Preset("the dual-relational part of SSD-KD", (Phase("d_kd"),)),
    "ssd_kd": Preset("SSD-KD; the teacher's head is fitted first", (_SSD_HEAD, Phase("ssd_kd"))),
    # Table 7 row by row, with the controls that it lacks.
    "extra_epochs": Preset("no distillation, as many epochs as the distilled student", (Phase("cross_entropy"),)),
    "stage1": Preset("stage 1 of DSP-KD alone: MGD + HF", (Phase("hf_masked_generation"),)),
    "norm_kd": Preset("stage 2 of DSP-KD alone", (Phase("norm_kd", rate=0.25),)),
    "stage1_vanilla_kd": Preset("stage 1, then Vanilla-KD", (_FEATURES, Phase("vanilla_kd", 0.5))),
    "unmasked": _dsp_kd("DSP-KD whose stage 1 hides nothing", mask="none"),
    "random_mask": _dsp_kd("DSP-KD whose stage 1 hides as many places, blindly", mask="random"),
    "joint": Preset("both losses of DSP-KD in one stage", (Phase("dsp_kd_joint", rate=0.25),)),
    "reversed": Preset("the stages of DSP-KD in reversed order", (_LOGITS, _FEATURES)),
    # Other readings of stage 1.
    "unimportant": _dsp_kd("DSP-KD that hides the unimportant places", hide="unimportant"),
    "top_half": _dsp_kd("DSP-KD that hides exactly half of the places of each image", hidden_fraction=0.5),
    "fitted_hf": _dsp_kd("DSP-KD with convolutions in the HF module, fitted first", hf="fitted"),
    "random_hf": _dsp_kd("DSP-KD with convolutions in the HF module, left at random", hf="random_frozen"),
    "full_block": _dsp_kd("DSP-KD with a generation block as wide as the teacher's map", generator_width="full"),
}


def preset_stages(name: str = "default", *, epochs: int | None = None, lr: float | None = None) -> list[dict[str, Any]]:
    """The stages of a preset, for `RunConfig.stages`.

    `epochs` is the total over the stages that train the student, `lr` the peak rate that each phase takes its share of.
    Raises ConfigError for an unknown name, or if a stage would get no epoch.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}", hint=f"choose one of {', '.join(PRESETS)}")
    preset = PRESETS[name]
    total = preset.epochs if epochs is None else epochs
    peak = preset.lr if lr is None else lr
    stages, share, given = [], 0.0, 0
    for phase in preset.phases:
        if phase.on_top:
            length = max(1, round(phase.share * total))
        else:
            share += phase.share
            length, given = int(share * total) - given, int(share * total)
        if length < 1:
            raise ConfigError(
                f"{total} epochs cannot be divided over the stages of {name}", hint="give more with --epochs"
            )
        stages.append(
            {
                "method": phase.method,
                "epochs": length,
                "settings": dict(phase.settings),
                "optimizer": {"lr": peak * phase.rate},
            }
        )
    return stages
