"""How to get images: dspkd downloads nothing by itself."""

from __future__ import annotations

__all__ = ["DOWNLOAD", "HOW_TO_DOWNLOAD"]

# The README shows the same lines; a test compares them.
DOWNLOAD = (
    "pip install isic-cli",
    "isic collection list",
    "isic image download --collections NUMBER images/",
    "isic metadata download --collections NUMBER",
)
HOW_TO_DOWNLOAD = f"to get images from the ISIC archive: {'; '.join(DOWNLOAD)}"
