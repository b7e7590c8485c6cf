"""Differences with their intervals, one row below the other, as plain SVG text that the page's style sheet colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dspkd_bench.charts import CHARACTER, Axis, number, svg

__all__ = ["IntervalRow", "interval_chart"]

TOP, BELOW = 10, 44


@dataclass(frozen=True, slots=True)
class IntervalRow:
    """A value with a narrow and, where it is known, a wide interval; `role` decides the colour."""

    label: str
    role: str
    value: float
    narrow: tuple[float, float]
    wide: tuple[float, float] | None
    points: Sequence[float] = ()
    """What the value is the mean of."""


def interval_chart(rows: Sequence[IntervalRow], *, title: str, x_label: str, narrow: bool = False) -> str:
    """Value, thick narrow and thin wide interval, small marks for the single points; zero is marked.

    Narrow: the name stands over its row instead of beside it.
    """
    if not rows:
        return ""
    longest = CHARACTER * max(len(r.label) for r in rows)
    width, pitch, left = (360.0, 48.0, 14.0) if narrow else (760.0, 28.0, min(24 + longest, 380.0))
    bottom = TOP + pitch * len(rows)
    height = bottom + BELOW
    ends = [v for r in rows for v in (*r.narrow, *(r.wide or ()), *r.points, 0.0)]
    margin = 0.04 * ((max(ends) - min(ends)) or 1.0)
    x = Axis(min(ends) - margin, max(ends) + margin, left, width - 14)
    parts = [
        f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{bottom:g}"/>'
        f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 18:g}" text-anchor="middle">{number(tick)}</text>'
        for tick in x.ticks
    ]
    parts.append(f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{TOP}" y2="{bottom:g}"/>')
    for k, row in enumerate(rows):
        middle = TOP + pitch * k + (30 if narrow else pitch / 2)
        name = (2.0, "start", middle - 13) if narrow else (left - 12, "end", middle + 4)
        parts.append(_row(row, x, middle, name))
    parts.append(f'<text class="label" x="{x.end:.1f}" y="{height - 4:g}" text-anchor="end">{escape(x_label)}</text>')
    return svg(width, height, title, parts)


def _row(row: IntervalRow, x: Axis, y: float, name: tuple[float, str, float]) -> str:
    """`name`: where the label stands (x, anchor, y)."""
    hint = f"{row.label}: {row.value:+.1f} [{row.narrow[0]:+.1f}, {row.narrow[1]:+.1f}]"
    at, anchor, line = name
    parts = [
        f'<g class="{escape(row.role)}"><title>{escape(hint)}</title>',
        f'<text class="row" x="{at:.1f}" y="{line:.1f}" text-anchor="{anchor}">{escape(row.label)}</text>',
    ]
    for css, interval in (("wide-interval", row.wide), ("narrow-interval", row.narrow)):
        if interval is not None:
            start, end = (f"{x(value):.1f}" for value in interval)
            parts.append(f'<line class="{css}" x1="{start}" x2="{end}" y1="{y:g}" y2="{y:g}"/>')
    for value in row.points:
        parts.append(f'<line class="point" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{y + 5:g}" y2="{y + 10:g}"/>')
    parts.append(f'<circle class="dot" cx="{x(row.value):.1f}" cy="{y:g}" r="4.2"/></g>')
    return "".join(parts)
