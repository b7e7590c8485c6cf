"""A comparison of methods as one self-contained HTML page, in the style of the report."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dspkd.compare.tables import comparison_tables, how_to_read
from dspkd.errors import MissingDependencyError
from dspkd_bench.charts import Series, line_chart
from dspkd_bench.interval_chart import IntervalRow, interval_chart

__all__ = ["render_comparison"]

JUDGED_BY = "balanced_accuracy"
PANEL = (330, 236)
"""As wide as a column of the page, so that text keeps its size."""


def render_comparison(results: Mapping[str, Any], histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The page as text, from what `dspkd.compare.results.collect` gives. Raises MissingDependencyError without
    Jinja.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ModuleNotFoundError as error:
        raise MissingDependencyError("the page needs jinja2", hint="pip install 'dspkd[report]'") from error
    environment = Environment(
        loader=PackageLoader("dspkd_bench"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["signs"] = _signs
    return environment.get_template("compare.html.j2").render(
        title=results["title"],
        created=results["created"],
        cautions=[results["caution"]] if results.get("caution") else [],
        notes=results["notes"],
        sentences=[_unbroken(sentence) for sentence in how_to_read(results)],
        findings=[_unbroken(sentence) for sentence in _findings(results)],
        charts=[chart for pair in results["pairs"] for chart in _interval_charts(results, pair)],
        tables=comparison_tables(results),
        curves=[_curves(results, pair, histories) for pair in results["pairs"]],
        confusions=[_confusions(results, pair) for pair in results["pairs"]],
        classes=results["classes"],
        long_names=any(len(name) > 5 for name in results["classes"]),
    )


def _unbroken(text: str) -> str:
    """A number stays on the line of its percent sign."""
    return text.replace(" %", "\u00a0%")


def _signs(text: str) -> str:
    """A true minus sign before a number; hyphens inside words stay."""
    return re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", text)


def _labels(results: Mapping[str, Any]) -> dict[str, str]:
    return {method["name"]: method["label"] for method in results["methods"]}


def _pair_title(results: Mapping[str, Any], pair: Mapping[str, Any]) -> str:
    names = {(n["role"], n["name"]): n["label"] for n in results["networks"]}
    student = names.get(("student", pair["student"]), pair["student"])
    return f"{names.get(('teacher', pair['teacher']), pair['teacher'])} to {student}" if pair["teacher"] else student


def _findings(results: Mapping[str, Any]) -> list[str]:
    """What the numbers say about each reference, in one sentence each, whichever way they went."""
    labels, found = _labels(results), []
    for pair in results["pairs"]:
        for reference in results["references"]:
            entries = [
                (row["method"], entry[JUDGED_BY], entry.get("holm"))
                for row in pair["rows"]
                if (entry := row["versus"].get(reference))
            ]
            if not entries:
                continue
            above = [labels[m] for m, own, holm in entries if holm and holm["p"] < 0.05 and own["difference"] > 0]
            below = [labels[m] for m, own, holm in entries if holm and holm["p"] < 0.05 and own["difference"] < 0]
            parts = [f"{', '.join(names)} {way}" for names, way in ((above, "above it"), (below, "below it")) if names]
            said = "; ".join(parts) or "none above or below it"
            found.append(
                f"{_pair_title(results, pair)}: of {len(entries)} methods compared with {labels[reference]}, {said} "
                "in balanced accuracy (Holm, 5 %, over lesions and seeds)."
            )
    return found


def _interval_charts(results: Mapping[str, Any], pair: Mapping[str, Any]) -> list[dict[str, str]]:
    labels, charts = _labels(results), []
    for reference in results["references"]:
        rows = [
            IntervalRow(
                labels[row["method"]],
                "student" if own["difference"] >= 0 else "baseline",
                100 * own["difference"],
                (100 * own["lesions"][0], 100 * own["lesions"][1]),
                _hundredfold(own["lesions_and_seeds"]),
                [100 * value for value in own["per_seed"]],
            )
            for row in pair["rows"]
            if (entry := row["versus"].get(reference)) and (own := entry[JUDGED_BY])
        ]
        title = f"{_pair_title(results, pair)}: minus {labels[reference]}"
        label = "difference of balanced accuracy, points"
        wide, narrow = (interval_chart(rows, title=title, x_label=label, narrow=narrow) for narrow in (False, True))
        if wide:
            charts.append({"title": title, "wide": wide, "narrow": narrow})
    return charts


def _hundredfold(pair: Sequence[float] | None) -> tuple[float, float] | None:
    return (100 * pair[0], 100 * pair[1]) if pair else None


def _curves(
    results: Mapping[str, Any], pair: Mapping[str, Any], histories: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """Validation balanced accuracy of each method's seeds, over those of the undistilled student."""
    labels, baseline = _labels(results), results["references"][0]
    alone = _series(results, pair, baseline, "baseline", histories)
    panels = []
    scores = [
        y for row in pair["rows"] for s in _series(results, pair, row["method"], "", histories) for _, y in s.points
    ]
    for row in pair["rows"]:
        if row["method"] != baseline and (own := _series(results, pair, row["method"], "student", histories)):
            title = labels[row["method"]]
            panels.append(
                {
                    "title": title,
                    "svg": line_chart(
                        [*alone, *own],
                        title=f"Validation balanced accuracy per epoch, {title}",
                        x_label="epoch",
                        y_label="validation balanced accuracy, %",
                        y_range=(min(scores), max(scores)),
                        size=PANEL,
                    ),
                }
            )
    return {"title": _pair_title(results, pair), "panels": panels, "baseline": labels[baseline]}


def _series(
    results: Mapping[str, Any],
    pair: Mapping[str, Any],
    method: str,
    role: str,
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[Series]:
    runs = [
        run
        for run in results["runs"]
        if (run["method"], run["student"]) == (method, pair["student"]) and run["teacher"] in (pair["teacher"], None)
    ]
    found = []
    for variant, run in enumerate(runs):
        lines = histories[run["run"]]
        breaks = [b["global_epoch"] - 0.5 for a, b in itertools.pairwise(lines) if a["stage"] != b["stage"]]
        points = [(line["global_epoch"], 100 * line["val"]["balanced_accuracy"]) for line in lines]
        found.append(Series(f"{method}, seed {run['seed']}", role, points, variant, breaks if variant == 0 else ()))
    return found


def _confusions(results: Mapping[str, Any], pair: Mapping[str, Any]) -> dict[str, Any]:
    labels = _labels(results)
    matrices = [
        {
            "title": labels[row["method"]],
            "rows": [
                (name, [count / max(1, sum(counts)) for count in counts])
                for name, counts in zip(results["classes"], row["confusion"], strict=True)
            ],
        }
        for row in pair["rows"]
        if "confusion" in row
    ]
    return {"title": _pair_title(results, pair), "matrices": matrices}
