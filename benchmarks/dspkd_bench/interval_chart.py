"""Differences with their intervals, one row below the other, as plain SVG text that the page's style sheet colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dspkd_bench.charts import CHARACTER, nice_ticks

__all__ = ["IntervalRow", "interval_chart"]

WIDTH, ROW, TOP, BELOW = 760, 28, 10, 44


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


def interval_chart(rows: Sequence[IntervalRow], *, title: str, x_label: str) -> str:
    """Value, thick narrow and thin wide interval, small marks for the single points; zero is marked."""
    if not rows:
        return ""
    bottom = TOP + ROW * len(rows)
    height = bottom + BELOW
    ends = [v for r in rows for v in (*r.narrow, *(r.wide or ()), *r.points, 0.0)]
    margin = 0.04 * ((max(ends) - min(ends)) or 1.0)
    low, high = min(ends) - margin, max(ends) + margin
    left = min(24 + CHARACTER * max(len(r.label) for r in rows), 0.5 * WIDTH)
    scale = (WIDTH - 14 - left) / (high - low)

    def x(value: float) -> str:
        return f"{left + scale * (value - low):.1f}"

    parts = [
        f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="{TOP}" y2="{bottom}"/>'
        f'<text class="tick" x="{x(tick)}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>'
        for tick in nice_ticks(low, high)
    ]
    parts.append(f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="{TOP}" y2="{bottom}"/>')
    for k, row in enumerate(rows):
        y = TOP + ROW * (k + 0.5)
        hint = f"{row.label}: {row.value:+.1f} [{row.narrow[0]:+.1f}, {row.narrow[1]:+.1f}]"
        parts.append(f'<g class="{escape(row.role)}"><title>{escape(hint)}</title>')
        parts.append(f'<text class="row" x="{left - 12:.1f}" y="{y + 4}" text-anchor="end">{escape(row.label)}</text>')
        for css, interval in (("wide-interval", row.wide), ("narrow-interval", row.narrow)):
            if interval is not None:
                parts.append(f'<line class="{css}" x1="{x(interval[0])}" x2="{x(interval[1])}" y1="{y}" y2="{y}"/>')
        for value in row.points:
            parts.append(f'<line class="point" x1="{x(value)}" x2="{x(value)}" y1="{y + 5}" y2="{y + 10}"/>')
        parts.append(f'<circle class="dot" cx="{x(row.value)}" cy="{y}" r="4.2"/></g>')
    parts.append(f'<text class="label" x="{WIDTH - 14}" y="{height - 4}" text-anchor="end">{escape(x_label)}</text>')
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
