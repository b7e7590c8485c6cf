"""The paper's protocol, and the sentence that whatever was made with it carries.

The paper augments, balances and only then divides at random (section 4.1), so that pictures of one lesion, and changed
copies of one picture, lie on both sides of the split. `data.protocol = "paper"` repeats that, for nothing but to
measure how much better it looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["PAPER", "caution"]

PAPER = "paper"


def caution(data: Mapping[str, Any]) -> str | None:
    """What has to stand beside every figure of a network whose card has this `data`; None where nothing has to."""
    if data.get("protocol") != PAPER:
        return None
    known, images = data["leak"]["test"], data["images"]["test"]
    return (
        f'protocol "paper": divided by picture, not by lesion; {known} of {images} test images show a lesion that was '
        "learned from. Figures are inflated and measure nothing but that"
    )
