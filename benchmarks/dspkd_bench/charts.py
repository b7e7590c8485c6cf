"""Charts for the report as plain SVG text.

Written by hand and not by a plotting library, because the page's style sheet then colours them: the same picture
follows light, dark and print. Colours are the classes `teacher`, `baseline` and `student`; every text is escaped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Point", "Series", "line_chart", "log_ticks", "nice_ticks", "scatter_chart"]


Box = tuple[float, float, float, float]
# Width of an average bold character of the style sheet's 12 px in a wide font.
CHARACTER = 7.4


@dataclass(frozen=True, slots=True)
class Series:
    """One line: `points` are (x, y); `role` decides its colour, `variant` (0, 1, ...) its dashes among lines of one
    role.
    """

    name: str
    role: str
    points: Sequence[tuple[float, float]]
    variant: int = 0
    breaks: Sequence[float] = ()
    """Where, on x, a new stage of training begins."""
    joined: bool = True
    """False: the line is interrupted at the breaks, because what it shows changes there."""


@dataclass(frozen=True, slots=True)
class Point:
    """One circle of the scatter plot; its area is proportional to `weight`."""

    label: str
    role: str
    x: float
    y: float
    weight: float
    detail: str = ""


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values (1, 2, 2.5 or 5 times a power of ten apart) inside [low, high]."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    magnitude = 10 ** math.floor(math.log10(span / count))
    step = next((m * magnitude for m in (1, 2, 2.5, 5, 10) if span / (m * magnitude) <= count), 10 * magnitude)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten inside [low, high]; powers of ten alone where that would be more than nine."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        ticks = [f * 10.0**e for e in exponents for f in factors if low * 0.999 <= f * 10.0**e <= high * 1.001]
        if len(ticks) <= 9:
            return ticks
    return ticks


def _number(value: float) -> str:
    return f"{value:.10g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}"


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        change: Callable[[float], float] = math.log10 if self.log else float
        share = (change(value) - change(self.low)) / ((change(self.high) - change(self.low)) or 1.0)
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        return log_ticks(self.low, self.high) if self.log else nice_ticks(self.low, self.high)


def _frame(x: _Axis, y: _Axis, x_label: str, y_label: str, height: int) -> list[str]:
    """Grid, tick labels and axis titles."""
    parts = []
    for tick in y.ticks:
        parts.append(f'<line class="grid" x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(
            f'<text class="tick" x="{x.start - 7:.1f}" y="{y(tick) + 4:.1f}" text-anchor="end">{_number(tick)}</text>'
        )
    for tick in x.ticks:
        parts.append(
            f'<line class="mark" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{y.start:.1f}" y2="{y.start + 4:.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{y.start + 18:.1f}" text-anchor="middle">{_number(tick)}</text>'
        )
    parts.append(f'<line class="axis" x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{y.start:.1f}" y2="{y.start:.1f}"/>')
    parts.append(f'<text class="label" x="{x.end:.1f}" y="{height - 4}" text-anchor="end">{escape(x_label)}</text>')
    parts.append(f'<text class="label" x="2" y="13">{escape(y_label)}</text>')
    return parts


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_y: bool = False,
    y_range: tuple[float, float] | None = None,
) -> str:
    """Lines over x. Values that a logarithmic axis cannot show (zero, negative) are left out, as are NaN and
    infinity.
    """
    width, height = 440, 280

    def usable(value: float) -> bool:
        return math.isfinite(value) and (value > 0 or not log_y)

    shown = [(s, [(px, py) for px, py in s.points if usable(py)]) for s in series]
    xs = [px for _, points in shown for px, _ in points]
    ys = [py for _, points in shown for _, py in points]
    if not xs:
        return ""
    low, high = y_range or (min(ys), max(ys))
    if log_y:
        # At least the steps 1-2-5 around the data, so that the axis never stands without a number.
        low, high = low / 1.15, max(high * 1.15, low * 2.5)
    x = _Axis(min(xs), max(max(xs), min(xs) + 1), 50, width - 12)
    y = _Axis(low, high, height - 44, 26, log=log_y)
    parts = _frame(x, y, x_label, y_label, height)
    for s, points in shown:
        css = f"{escape(s.role)} v{s.variant % 3}"
        for place in s.breaks:
            parts.append(
                f'<line class="stage {css}" x1="{x(place):.1f}" x2="{x(place):.1f}" y1="{y.start}" y2="{y.end}"/>'
            )
        bounds = [-math.inf, *([] if s.joined else sorted(s.breaks)), math.inf]
        for start, end in itertools.pairwise(bounds):
            path = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in points if start < px <= end)
            parts.append(f'<polyline class="line {css}" points="{path}"><title>{escape(s.name)}</title></polyline>')
        if points:
            px, py = points[-1]
            parts.append(f'<circle class="dot {css}" cx="{x(px):.1f}" cy="{y(py):.1f}" r="3.2"/>')
    return _svg(width, height, title, parts)


def scatter_chart(points: Sequence[Point], *, title: str, x_label: str, y_label: str) -> str:
    """Circles over a logarithmic x axis, y in percent, each with its label where it hides no other."""
    width, height, largest = 760, 380, 19.0
    if not points:
        return ""
    xs, ys = [p.x for p in points], [p.y for p in points]
    margin = max(3.0, 0.25 * (max(ys) - min(ys)))
    x = _Axis(min(xs) / 1.6, max(xs) * 1.6, 56, width - 16, log=True)
    y = _Axis(max(0.0, min(ys) - margin), min(100.0, max(ys) + margin), height - 44, 30)
    parts = _frame(x, y, x_label, y_label, height)
    heaviest = max(p.weight for p in points) or 1.0
    radii = [max(3.5, largest * math.sqrt(p.weight / heaviest)) for p in points]
    circles = [(x(p.x), y(p.y), r) for p, r in zip(points, radii, strict=True)]
    boxes = [(cx - r, cy - r, cx + r, cy + r) for cx, cy, r in circles]
    for p, (cx, cy, r) in zip(points, circles, strict=True):
        hint = escape(f"{p.label}: {p.detail}" if p.detail else p.label)
        parts.append(
            f'<circle class="bubble {escape(p.role)}" cx="{cx:.1f}" cy="{cy:.1f}" r="{r:.1f}">'
            f"<title>{hint}</title></circle>"
        )
    for p, circle in zip(points, circles, strict=True):
        left, middle, box = _place_label(len(p.label) * CHARACTER, circle, boxes, (58, 30, width - 8, height - 48))
        boxes.append(box)
        cx, cy, r = circle
        if abs(middle - cy) > r + 16:
            parts.append(f'<line class="leader" x1="{cx:.1f}" y1="{cy:.1f}" x2="{cx:.1f}" y2="{middle:.1f}"/>')
        parts.append(
            f'<text class="name {escape(p.role)}" x="{left:.1f}" y="{middle + 4:.1f}">{escape(p.label)}</text>'
        )
    return _svg(width, height, title, parts)


def _place_label(
    length: float, circle: tuple[float, float, float], taken: Sequence[Box], area: Box
) -> tuple[float, float, Box]:
    """The place nearest to its circle where a label of `length` overlaps nothing: (left, middle, box)."""
    cx, cy, r = circle
    candidates = [(cx + r + 6, cy), (cx - r - 10 - length, cy)]
    for step in range(1, 9):
        shift = r + 9 + 15 * (step - 1)
        candidates += [
            (cx - length / 2, cy - shift),
            (cx - length / 2, cy + shift),
            (cx + 5, cy - shift),
            (cx + 5, cy + shift),
        ]
    for left, middle in candidates:
        box = (left - 2, middle - 7, left + length + 2, middle + 7)
        inside = box[0] >= area[0] and box[1] >= area[1] and box[2] <= area[2] and box[3] <= area[3]
        if inside and not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            return left, middle, box
    left = min(max(cx - length / 2, area[0]), area[2] - length)
    return left, cy - r - 9, (left, cy - r - 16, left + length, cy - r - 2)
