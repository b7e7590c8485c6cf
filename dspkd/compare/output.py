"""The files of a comparison: tables, results and pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dspkd.compare.results import JUDGED_BY, Collected
from dspkd.compare.tables import comparison_tables, how_to_read
from dspkd.fileio import write_json, write_text

__all__ = ["comparison_csv", "comparison_markdown", "latency_csv", "runs_csv", "write_tables"]


def write_tables(out: Path, collected: Collected) -> None:
    """tables.md, tables.csv, runs.csv, results.json, latency.csv if it was measured, and for each pair of networks the
    curves (figure 9 of the paper) and the confusion matrices (figure 10); without matplotlib there are no pictures.
    """
    from dspkd.figures import confusion_grid_svg, curves_grid_svg

    results = collected.results
    write_json(out / "results.json", results)
    write_text(out / "tables.md", comparison_markdown(results))
    write_text(out / "tables.csv", comparison_csv(results))
    write_text(out / "runs.csv", runs_csv(results))
    if results["latency"]:
        write_text(out / "latency.csv", latency_csv(results))
    else:
        (out / "latency.csv").unlink(missing_ok=True)
    labels = {method["name"]: method["label"] for method in results["methods"]}
    note = results["caution"]
    for pair in results["pairs"]:
        histories = {}
        for row in pair["rows"]:
            own = [
                run["run"]
                for run in results["runs"]
                if (run["method"], run["student"]) == (row["method"], pair["student"])
                and run["teacher"] in (pair["teacher"], None)
            ]
            histories[labels[row["method"]]] = [collected.histories[name] for name in own]
        confusions = {labels[row["method"]]: row["confusion"] for row in pair["rows"] if "confusion" in row}
        name = "-".join(filter(None, [pair["teacher"], pair["student"]]))
        for file, picture in (
            (f"curves-{name}.svg", curves_grid_svg({k: v for k, v in histories.items() if v}, note=note)),
            (f"confusion-{name}.svg", confusion_grid_svg(results["classes"], confusions, note=note)),
        ):
            if picture is not None:
                write_text(out / file, picture)


def comparison_markdown(results: Mapping[str, Any]) -> str:
    lines = [f"# {results['title']}", ""]
    if results["caution"]:
        lines += [f"**{results['caution']}**", ""]
    if results["notes"]:
        lines += [results["notes"].strip(), ""]
    for sentence in how_to_read(results):
        lines += [sentence, ""]
    for table in comparison_tables(results):
        lines += [f"## {table.title}", ""]
        lines.append(_markdown_row(table.columns))
        lines.append(
            "|" + "|".join("---" if k in table.text_columns else "--:" for k in range(len(table.columns))) + "|"
        )
        lines += [_markdown_row([str(entry) for entry in row]) for row in table.rows]
        lines.append("")
        for note in table.notes:
            lines += [note, ""]
    return "\n".join(lines)


def _markdown_row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(text.replace("|", "\\|").split()) for text in texts) + " |"


CSV_COLUMNS = (
    "student", "teacher", "method", "metric", "seeds", "mean", "sd", "reference", "common_seeds", "difference",
    "lesions_low", "lesions_high", "lesions_and_seeds_low", "lesions_and_seeds_high", "p", "holm_p", "comparisons",
)  # fmt: skip


def comparison_csv(results: Mapping[str, Any]) -> str:
    """One row for each student, teacher, method, metric and reference; fractions, empty where there is nothing."""
    rows = []
    for pair in results["pairs"]:
        for row in pair["rows"]:
            versus = {name: entry for name, entry in row["versus"].items() if entry} or {"": None}
            for metric, own in row["metrics"].items():
                start = [pair["student"], pair["teacher"], row["method"], metric, len(row["seeds"])]
                for reference, entry in versus.items():
                    rows.append([*start, own["mean"], own["sd"], reference, *_csv_difference(entry, metric)])
    return _csv(CSV_COLUMNS, rows)


def _csv_difference(entry: Mapping[str, Any] | None, metric: str) -> list[Any]:
    if entry is None:
        return [None] * 9
    own = entry[metric]
    adjusted = entry.get("holm", {}) if metric == JUDGED_BY else {}
    both = own["lesions_and_seeds"] or (None, None)
    return [
        len(entry["seeds"]), own["difference"], *own["lesions"], *both, own["p"], adjusted.get("p"),
        adjusted.get("comparisons"),
    ]  # fmt: skip


def runs_csv(results: Mapping[str, Any]) -> str:
    """One row for each finished run."""
    metrics = list(results["runs"][0]["metrics"])
    fixed = ("run", "method", "student", "teacher", "seed")
    columns = [*fixed, "selected_stage", "selected_epoch", "training_seconds", *metrics]
    rows = [
        [
            *(run[key] for key in fixed),
            run["selected"]["stage"],
            run["selected"]["epoch"],
            run["training_seconds"],
            *(run["metrics"][metric] for metric in metrics),
        ]
        for run in results["runs"]
    ]
    return _csv(columns, rows)


LATENCY_KEYS = (
    "role", "name", "architecture", "parameters", "macs", "size", "runtime", "matched_by", "run", "verdict", "p50_ms",
)  # fmt: skip


def latency_csv(results: Mapping[str, Any]) -> str:
    """One row for each network and each runtime that it was measured on; times in milliseconds."""
    measured = ("p50_low", "p50_high", "p90_ms", "teacher_over_student", "ratio_low", "ratio_high", "same_runtime")
    rows = []
    for entry in results["latency"]:
        for row in entry["rows"]:
            line = [*(row[key] for key in LATENCY_KEYS), *row["p50_interval_ms"], row["p90_ms"]]
            if ratio := row["teacher_over_student"]:
                line += [ratio["latency"]["ratio"], *ratio["latency"]["interval"], ratio["same_runtime"]]
            else:
                line += [None] * 4
            rows.append([*line, entry["device"], entry["threads"]])
    return _csv([*LATENCY_KEYS, *measured, "device", "threads"], rows)


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return text.getvalue()
