"""What is taken out of a picture before it is resized: hairs, uneven light. Part of `dspkd.preprocess.Preprocess`, so
that a network is judged, exported and used on pictures like those that it learnt from.
"""

from __future__ import annotations

from pydantic import ConfigDict, Field, model_validator

from dspkd.stored_form import StoredForm

__all__ = ["HAIR_THRESHOLD", "Cleaning"]

# The smallest of those tried above which at most 2 % of the hair-free pictures of the tuning half lie
# (`benchmarks/results/hair.md`).
HAIR_THRESHOLD = 0.005


class Cleaning(StoredForm):
    """All off by default. What is off is not written."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    hair_removal: bool = False
    """Paint over dark hairs (`dspkd.data.hair`)."""
    hair_threshold: float = Field(default=HAIR_THRESHOLD, ge=0.0, lt=1.0)
    """Only in pictures of which hairs cover a larger share than this; the others stay as they are."""
    illumination: bool = False
    """Even out slow changes of brightness over the picture (`dspkd.data.illumination`), after the hairs."""

    @model_validator(mode="after")
    def _threshold_is_used(self) -> Cleaning:
        if "hair_threshold" in self.model_fields_set and not self.hair_removal:
            raise ValueError("hair_threshold does nothing without hair_removal = true")
        return self

    @property
    def is_on(self) -> bool:
        return self.hair_removal or self.illumination

    def unused_keys(self) -> frozenset[str]:
        hair = frozenset() if self.hair_removal else frozenset({"hair_removal", "hair_threshold"})
        return hair if self.illumination else hair | {"illumination"}

    def __str__(self) -> str:
        named = {
            f"hair removal above a cover of {self.hair_threshold:g}": self.hair_removal,
            "illumination correction": self.illumination,
        }
        return " and ".join(name for name, on in named.items() if on) or "no cleaning"
