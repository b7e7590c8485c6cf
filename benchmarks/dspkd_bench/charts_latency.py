"""Charts of times: a strip for each subject, and each call over time.

A strip is drawn from the percentiles, which come from every call. The stored series cannot give them: where there were
many calls it holds medians of neighbours, and those have no tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dspkd_bench.charts import CHARACTER, Axis, latency_axis, nice_ticks, number, svg
from dspkd_bench.report_numbers import ms

__all__ = ["Strip", "strip_chart", "time_chart"]

LONGEST = 46
BULK = 0.97


@dataclass(frozen=True, slots=True)
class Strip:
    """The latency of one subject in milliseconds."""

    label: str
    role: str
    least: float
    p50: float
    p90: float
    p99: float
    most: float


def strip_chart(strips: Sequence[Strip], *, title: str, x_label: str, narrow: bool = False) -> str:
    """One strip for each subject, in the order given: fastest call to p90 broad, on to p99 thin, p50 as a bar.

    Narrow: the name stands over its strip instead of beside it.
    """
    if not strips:
        return ""
    longest = max(min(len(s.label), LONGEST) for s in strips)
    width, pitch, left = (360, 46, 6) if narrow else (760, 25, min(300, 20 + CHARACTER * longest))
    height = 14 + pitch * len(strips) + 38
    x = latency_axis([v for s in strips for v in (s.least, s.p99)], left, width - 70)
    bottom = height - 38
    parts = []
    for tick in x.ticks:
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="8" y2="{bottom}"/>')
        parts.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{number(tick)}</text>'
        )
    for i, strip in enumerate(strips):
        parts += _strip(strip, x, 14 + pitch * i + (28 if narrow else 12), narrow)
    caption = f"{x_label} (logarithmic)" if x.log else x_label
    parts.append(f'<text class="label" x="{x.end:.1f}" y="{height - 4}" text-anchor="end">{escape(caption)}</text>')
    return svg(width, height, title, parts)


def _strip(strip: Strip, x: Axis, middle: float, narrow: bool) -> list[str]:
    name = strip.label if len(strip.label) <= LONGEST else f"{strip.label[: LONGEST - 1]}…"
    at, anchor, line = (x.start, "start", middle - 14) if narrow else (x.start - 14, "end", middle + 4)
    hint = (
        f"{strip.label}: p50 {ms(strip.p50)}, p90 {ms(strip.p90)}, p99 {ms(strip.p99)} ms; "
        f"from {ms(strip.least)} to {ms(strip.most)} ms"
    )
    css = escape(strip.role)
    least, p50, p90, p99 = (x(v) for v in (strip.least, strip.p50, strip.p90, strip.p99))
    return [
        f'<g class="{css}"><title>{escape(hint)}</title>',
        f'<text class="row" x="{at:.1f}" y="{line:.1f}" text-anchor="{anchor}">{escape(name)}</text>',
        f'<line class="tail" x1="{p90:.1f}" x2="{p99:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>',
        f'<line class="tail" x1="{p99:.1f}" x2="{p99:.1f}" y1="{middle - 4:.1f}" y2="{middle + 4:.1f}"/>',
        f'<rect class="body" x="{least:.1f}" y="{middle - 5:.1f}" width="{max(p90 - least, 1.5):.1f}" height="10"/>',
        f'<line class="median" x1="{p50:.1f}" x2="{p50:.1f}" y1="{middle - 7:.1f}" y2="{middle + 7:.1f}"/>',
        f'<text class="value" x="{p99 + 9:.1f}" y="{middle + 4:.1f}">{ms(strip.p50)}</text></g>',
    ]


def time_chart(
    at_s: Sequence[float],
    values: Sequence[float],
    *,
    role: str,
    title: str,
    guides: Sequence[tuple[str, float]],
) -> str:
    """A dot for each stored time over seconds, small, with the `guides` (name, milliseconds) as lines across.

    The axis is that of the bulk, so that a slope and two bands can be seen: what lies above is a mark at the upper
    edge, and a guide up there is left out.
    """
    if not values:
        return ""
    width, height = 320, 132
    ordered = sorted(values)
    middle, low, high = ordered[len(ordered) // 2], ordered[0], ordered[int(BULK * (len(ordered) - 1))]
    # At least a tenth of the median, or the noise of a quiet machine would look like a storm.
    spare = max(0.12 * (high - low), (0.1 * middle - (high - low)) / 2)
    x = Axis(at_s[0], max(at_s[-1], at_s[0] + 1e-3), 44, width - 10 - 6.2 * max(len(name) for name, _ in guides))
    y = Axis(max(0.0, low - spare), high + spare, height - 22, 8)
    parts = []
    for tick in _at_least_two(y.low, y.high):
        parts.append(f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(
            f'<text class="tick" x="{x.start - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    for tick in nice_ticks(x.low, x.high, 4):
        parts.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{height - 6}" text-anchor="middle">{number(tick)} s</text>'
        )
    inside = "".join(f"M{x(s):.1f} {y(v):.1f}h0" for s, v in zip(at_s, values, strict=True) if v <= y.high)
    over = "".join(f"M{x(s):.1f} {y.end + 5}v-5" for s, v in zip(at_s, values, strict=True) if v > y.high)
    parts.append(f'<path class="dots {escape(role)}" d="{inside}"/>')
    if over:
        parts.append(f'<path class="over {escape(role)}" d="{over}"><title>above the axis</title></path>')
    return svg(width, height, title, [*parts, *_guides([(n, v) for n, v in guides if y.low <= v <= y.high], x, y)])


def _at_least_two(low: float, high: float) -> list[float]:
    """Few ticks, and never a single one, from which no scale can be read."""
    few = nice_ticks(low, high, 3)
    return few if len(few) > 1 else nice_ticks(low, high, 6)


def _guides(guides: Sequence[tuple[str, float]], x: Axis, y: Axis) -> list[str]:
    parts = []
    lowest = float("inf")
    for name, value in sorted(guides, key=lambda g: g[1]):
        place = y(value)
        parts.append(f'<line class="guide" x1="{x.start}" x2="{x.end}" y1="{place:.1f}" y2="{place:.1f}"/>')
        # Two names on one line would hide each other; the higher one moves up.
        text = min(place + 4, lowest - 11)
        lowest = text
        parts.append(f'<text class="tick" x="{x.end + 4}" y="{text:.1f}">{escape(name)}</text>')
    return parts
