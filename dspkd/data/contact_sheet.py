"""A picture of suspicious pairs, side by side, worst first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from dspkd.errors import DataError
from dspkd.fileio import atomic_file
from dspkd.preprocess import load_rgb

if TYPE_CHECKING:
    from dspkd.data.audit import SuspiciousPair

__all__ = ["write_contact_sheet"]

SIDE = 160
COLUMNS = 3
MOST = 60
_GAP, _LINE = 12, 16
_INK, _ALARM, _PAPER = (40, 40, 40), (190, 20, 20), (255, 255, 255)


def write_contact_sheet(path: Path, pairs: Sequence[SuspiciousPair]) -> None:
    """PNG of the first 60 of `pairs`: each picture as it is stored, its name, label and part, and what makes it
    suspicious.
    """
    shown = pairs[:MOST]
    cell = (2 * SIDE + 4 + _GAP, SIDE + 4 * _LINE + _GAP)
    rows = -(-len(shown) // COLUMNS)
    width = COLUMNS * cell[0] + _GAP
    sheet = Image.new("RGB", (width, rows * cell[1] + 2 * _GAP + _LINE), _PAPER)
    draw = ImageDraw.Draw(sheet)
    title = f"{len(shown)} of {len(pairs)} pairs that show the same picture, the most harmful first"
    draw.text((_GAP, _GAP // 2), title, _INK, font=_font())
    for k, pair in enumerate(shown):
        left = _GAP + k % COLUMNS * cell[0]
        top = _GAP + _LINE + k // COLUMNS * cell[1]
        for n in range(2):
            x = left + n * (SIDE + 4)
            sheet.paste(_small(pair.paths[n]), (x, top))
            _write(draw, x, top + SIDE, (pair.first, pair.second)[n], _INK)
            part = f", {pair.parts[n]}" if pair.parts[n] else ""
            _write(draw, x, top + SIDE + _LINE, pair.labels[n] + part, _ALARM if pair.disagrees else _INK)
        how = "same file" if pair.exact else f"{pair.orientation}, similarity {pair.similarity:.3f}"
        draw.text((left, top + SIDE + 2 * _LINE), _printable(how), _INK, font=_font())
        draw.text((left, top + SIDE + 3 * _LINE), _reason(pair), _ALARM, font=_font())
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG")


def _reason(pair: SuspiciousPair) -> str:
    reasons = []
    if pair.crosses:
        reasons.append("crosses the split")
    if pair.disagrees:
        reasons.append("labels disagree")
    if not pair.same_lesion:
        reasons.append("different lesions")
    return ", ".join(reasons)


def _small(path: Path) -> Image.Image:
    try:
        picture = load_rgb(path, at_least=SIDE)
    except DataError:  # it could be read a moment ago
        return Image.new("RGB", (SIDE, SIDE), (230, 230, 230))
    picture.thumbnail((SIDE, SIDE))
    return picture


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(11)


def _printable(text: str) -> str:
    """The font that comes with Pillow has few letters beyond ASCII."""
    return text.encode("ascii", "replace").decode()


def _write(draw: ImageDraw.ImageDraw, x: int, y: int, text: str, colour: tuple[int, int, int]) -> None:
    text, font = _printable(text), _font()
    while draw.textlength(text, font=font) > SIDE and len(text) > 4:
        text = "..." + text[4:]
    draw.text((x, y), text, colour, font=font)
