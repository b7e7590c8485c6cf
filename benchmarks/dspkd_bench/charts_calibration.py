"""The reliability diagram: how often an answer was right, over how sure it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dspkd_bench.charts import Axis, svg

__all__ = ["reliability_chart"]


def reliability_chart(
    bins: Sequence[Mapping[str, Any]], *, role: str, title: str, reference: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Above: the share of right answers in each bin of `dspkd.train.metrics.calibration`, a dot at its mean
    confidence, and the diagonal on which the two would be equal. Below: the images of each bin. `reference` is a
    second set of bins, drawn as hollow dots.
    """
    filled = [row for row in bins if row["n"]]
    if not filled:
        return ""
    width, height = 300, 328
    x, y = Axis(0.0, 1.0, 40, width - 14), Axis(0.0, 1.0, 224, 28)
    most = max(row["n"] for row in filled)
    counts = Axis(0.0, float(most), 288, 240)
    parts = _grid(x, y)
    for row in filled:
        parts.append(_bar("bar", role, x, row, y(row["accuracy"]), y.start, _hint(row)))
        parts.append(_bar("count", role, x, row, counts(row["n"]), counts.start, _hint(row)))
    parts.append(f'<line class="even" x1="{x(0)}" y1="{y(0)}" x2="{x(1)}" y2="{y(1)}"/>')
    for row in (row for row in reference if row["n"]):
        parts.append(
            f'<circle class="hollow" cx="{x(row["confidence"]):.1f}" cy="{y(row["accuracy"]):.1f}" r="4.5">'
            f"<title>{escape(f'PyTorch: {_hint(row)}')}</title></circle>"
        )
    for row in filled:
        parts.append(
            f'<circle class="dot {escape(role)}" cx="{x(row["confidence"]):.1f}" cy="{y(row["accuracy"]):.1f}" r="3">'
            f"<title>{escape(_hint(row))}</title></circle>"
        )
    parts.append(f'<line class="axis" x1="{x.start}" x2="{x.end}" y1="{counts.start}" y2="{counts.start}"/>')
    parts.append(f'<text class="tick" x="{x.start - 6}" y="{counts.end + 5}" text-anchor="end">{most}</text>')
    return svg(width, height, title, parts)


def _grid(x: Axis, y: Axis) -> list[str]:
    parts = ['<text class="label" x="2" y="12">right answers, %</text>']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>')
        parts.append(
            f'<text class="tick" x="{x.start - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{100 * share:.0f}</text>'
        )
        parts.append(f'<text class="tick" x="{x(share):.1f}" y="304" text-anchor="middle">{100 * share:.0f}</text>')
    parts.append(
        f'<text class="label" x="{x.end}" y="324" text-anchor="end">probability of the answer, %; images below</text>'
    )
    return parts


def _bar(css: str, role: str, x: Axis, row: Mapping[str, Any], top: float, bottom: float, hint: str) -> str:
    left, right = x(row["low"]), x(row["high"])
    return (
        f'<rect class="{css} {escape(role)}" x="{left + 0.5:.1f}" y="{top:.1f}" width="{right - left - 1:.1f}" '
        f'height="{bottom - top:.1f}"><title>{escape(hint)}</title></rect>'
    )


def _hint(row: Mapping[str, Any]) -> str:
    return (
        f"{100 * row['low']:.0f} to {100 * row['high']:.0f} % sure: {row['n']} images, "
        f"{100 * row['accuracy']:.1f} % right, {100 * row['confidence']:.1f} % expected"
    )
