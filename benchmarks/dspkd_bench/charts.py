"""Charts for the report as plain SVG text: axes, lines over x, and accuracy over latency.

Written by hand and not by a plotting library, because the page's style sheet then colours them: the same picture
follows light, dark and print. Colours are classes (a role, or c0 to c5 for lines that have none); every text is
escaped. Text keeps its size only where a picture is about as wide as it was drawn, so what has to be read on a phone
is drawn twice, wide and narrow, and the style sheet shows one of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = [
    "Axis",
    "Point",
    "Series",
    "frame",
    "latency_axis",
    "line_chart",
    "log_ticks",
    "nice_ticks",
    "number",
    "pareto_front",
    "percent_range",
    "scatter_chart",
    "svg",
]


Box = tuple[float, float, float, float]
# Width of an average bold character of the style sheet's 12 px in a wide font.
CHARACTER = 8.2
# Where a label may stand over or under its circle: its left end, its middle or its right end, so far from the centre.
PLACES = ((0.0, 0.5), (4.0, 0.0), (-4.0, 1.0), (30.0, 0.0), (-30.0, 1.0), (70.0, 0.0), (-70.0, 1.0))
# Times that differ by more than this are shown on a logarithmic axis, others on one from zero.
LOG_FROM = 20.0


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


def nice_ticks(low: float, high: float, count: int = 5, *, whole: bool = False) -> list[float]:
    """Round values (1, 2, 2.5 or 5 times a power of ten apart) inside [low, high]; `whole`: integers alone."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    magnitude = 10 ** math.floor(math.log10(span / count))
    factors = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    step = next((m * magnitude for m in factors if span / (m * magnitude) <= count), 10 * magnitude)
    if whole:
        step = max(step, 1)
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


def number(value: float) -> str:
    """A tick's label, with a true minus sign."""
    if value < 0:
        return f"\N{MINUS SIGN}{number(-value)}"
    return f"{value:.10g}" if value >= 1e-4 or value == 0 else f"{value:.0e}"


@dataclass(frozen=True, slots=True)
class Axis:
    """Values low to high on the picture's start to end."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    whole: bool = False
    """Ticks at integers alone, as for epochs."""

    def __call__(self, value: float) -> float:
        change: Callable[[float], float] = math.log10 if self.log else float
        share = (change(value) - change(self.low)) / ((change(self.high) - change(self.low)) or 1.0)
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        return log_ticks(self.low, self.high) if self.log else nice_ticks(self.low, self.high, whole=self.whole)


def latency_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """From zero, so that lengths are times; logarithmic where a linear axis would press the fast ones together."""
    low, high = min(values), max(values)
    if low > 0 and high > LOG_FROM * low:
        return Axis(low / 1.4, high * 1.4, start, end, log=True)
    return Axis(0.0, high * 1.1 or 1.0, start, end)


def frame(x: Axis, y: Axis, x_label: str, y_label: str, height: int) -> list[str]:
    """Grid, tick labels and axis titles."""
    parts = []
    for tick in y.ticks:
        parts.append(f'<line class="grid" x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(
            f'<text class="tick" x="{x.start - 7:.1f}" y="{y(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    for tick in x.ticks:
        parts.append(
            f'<line class="mark" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{y.start:.1f}" y2="{y.start + 4:.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{y.start + 18:.1f}" text-anchor="middle">{number(tick)}</text>'
        )
    parts.append(f'<line class="axis" x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{y.start:.1f}" y2="{y.start:.1f}"/>')
    parts.append(f'<text class="label" x="{x.end:.1f}" y="{height - 4}" text-anchor="end">{escape(x_label)}</text>')
    parts.append(f'<text class="label" x="2" y="13">{escape(y_label)}</text>')
    return parts


def svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">'
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
    size: tuple[int, int] = (440, 280),
) -> str:
    """Lines over x. Values that a logarithmic axis cannot show (zero, negative) are left out, as are NaN and
    infinity.
    """
    width, height = size

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
    elif high - low < 0.04 * abs(high):
        # What does not move shall look as if it did not move.
        low, high = low - 0.02 * abs(low), high + 0.02 * abs(high)
    x = Axis(min(xs), max(max(xs), min(xs) + 1), 50, width - 12, whole=all(isinstance(px, int) for px in xs))
    y = Axis(low, high, height - 44, 26, log=log_y)
    parts = frame(x, y, x_label, y_label, height)
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
    return svg(width, height, title, parts)


# Accuracy over latency ----------------------------------------------------------------------------


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Indices, from left to right, of the points that no other beats: none is as far left and as high, and further
    left or higher.
    """

    def beaten(p: Point) -> bool:
        return any(q.x <= p.x and q.y >= p.y and (q.x < p.x or q.y > p.y) for q in points)

    return sorted((i for i, p in enumerate(points) if not beaten(p)), key=lambda i: points[i].x)


def percent_range(values: Sequence[float]) -> tuple[float, float]:
    """The ends of the scatter plot's vertical axis: the values with room around them, inside 0 to 100."""
    margin = max(3.0, 0.25 * (max(values) - min(values)))
    return max(0.0, min(values) - margin), min(100.0, max(values) + margin)


def scatter_chart(points: Sequence[Point], *, title: str, x_label: str, y_label: str, narrow: bool = False) -> str:
    """Circles with y in percent, the Pareto front as a line of steps, what lies behind it paler.

    Wide: each circle has its label, where it hides no other. Narrow: each has its number, from 1, in the order given.
    """
    width, height, largest = (360, 320, 15.0) if narrow else (760, 380, 19.0)
    if not points:
        return ""
    x = latency_axis([p.x for p in points], 56, width - 16)
    y = Axis(*percent_range([p.y for p in points]), height - 44, 30)
    parts = frame(x, y, f"{x_label} (logarithmic)" if x.log else x_label, y_label, height)
    heaviest = max(p.weight for p in points) or 1.0
    circles = [(x(p.x), y(p.y), max(3.5, largest * math.sqrt(p.weight / heaviest))) for p in points]
    front = pareto_front(points)
    parts.append(_steps([circles[i][:2] for i in front], y.start, x.end))
    for i, (p, (cx, cy, r)) in enumerate(zip(points, circles, strict=True)):
        hint = f"{p.label}: {p.detail}" if p.detail else p.label
        place = "on the Pareto front" if i in front else "not on the Pareto front"
        css = "bubble" if i in front else "bubble behind"
        parts.append(
            f'<circle class="{css} {escape(p.role)}" cx="{cx:.1f}" cy="{cy:.1f}" r="{r:.1f}">'
            f"<title>{escape(f'{hint}, {place}')}</title></circle>"
        )
    texts = [str(i + 1) for i in range(len(points))] if narrow else [p.label for p in points]
    parts += _labels(texts, [p.role for p in points], circles, (58, 30, width - 8, height - 48))
    return svg(width, height, title, parts)


def _steps(places: Sequence[tuple[float, float]], bottom: float, right: float) -> str:
    """From the bottom up to the first place, and in steps to the right: what is under it, one of the places beats."""
    path = f"M{places[0][0]:.1f} {bottom:.1f}"
    for cx, cy in places:
        path += f"H{cx:.1f}V{cy:.1f}"
    return f'<path class="front" d="{path}H{right:.1f}"><title>Pareto front</title></path>'


def _labels(
    texts: Sequence[str], roles: Sequence[str], circles: Sequence[tuple[float, float, float]], area: Box
) -> list[str]:
    """Each text near its circle, hiding no circle and no other text; a line leads there where it is not beside it."""
    leaders, names = [], []
    taken = [(cx - r, cy - r, cx + r, cy + r) for cx, cy, r in circles]
    for text, role, circle in zip(texts, roles, circles, strict=True):
        box = _place_label(len(text) * CHARACTER, circle, taken, area)
        taken.append(box)
        cx, cy, r = circle
        end = _nearest(cx, cy, box)
        if math.dist((cx, cy), end) > r + 10:
            leaders.append(f'<line class="leader" x1="{cx:.1f}" y1="{cy:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"/>')
        names.append(
            f'<text class="name {escape(role)}" x="{box[0] + 2:.1f}" y="{box[1] + 11:.1f}">{escape(text)}</text>'
        )
    return [*leaders, *names]


def _nearest(cx: float, cy: float, box: Box) -> tuple[float, float]:
    return min(max(cx, box[0]), box[2]), min(max(cy, box[1]), box[3])


def _place_label(length: float, circle: tuple[float, float, float], taken: Sequence[Box], area: Box) -> Box:
    """The free place for a label of `length` that is nearest to its circle, and whose line there crosses little."""
    cx, cy, r = circle
    places = [(cx + r + 4, cy), (cx - r - 8 - length, cy)]
    for step in range(10):
        for middle in (cy - r - 9 - 15 * step, cy + r + 9 + 15 * step):
            places += [(cx + shift - share * length, middle) for shift, share in PLACES]
    best, least = None, math.inf
    for left, middle in places:
        box = (left - 2, middle - 7, left + length + 2, middle + 7)
        inside = box[0] >= area[0] and box[1] >= area[1] and box[2] <= area[2] and box[3] <= area[3]
        if not inside or any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            continue
        end = _nearest(cx, cy, box)
        cost = math.dist((cx, cy), end) + 45 * sum(_crosses((cx, cy), end, b) for b in taken)
        if cost < least:
            best, least = box, cost
    if best is not None:
        return best
    left = min(max(cx - length / 2, area[0]), area[2] - length)
    return (left, cy - r - 16, left + length, cy - r - 2)


def _crosses(start: tuple[float, float], end: tuple[float, float], box: Box) -> bool:
    """Whether the line from `start` to `end` passes through a box that does not hold its start."""
    if box[0] <= start[0] <= box[2] and box[1] <= start[1] <= box[3]:
        return False
    steps = (i / 16 for i in range(17))
    on_line = ((start[0] + t * (end[0] - start[0]), start[1] + t * (end[1] - start[1])) for t in steps)
    return any(box[0] < px < box[2] and box[1] < py < box[3] for px, py in on_line)
