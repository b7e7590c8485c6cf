"""The networks, by their field-standard names, and taps on their layers."""

from dspkd.models.taps import FeatureTaps
from dspkd.models.weights import load_weights, read_state_dict
from dspkd.models.zoo import Architecture, check_takes, create_model, pretrained_preprocess

__all__ = [
    "Architecture",
    "FeatureTaps",
    "check_takes",
    "create_model",
    "load_weights",
    "pretrained_preprocess",
    "read_state_dict",
]
