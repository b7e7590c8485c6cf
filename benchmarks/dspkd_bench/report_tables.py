"""Results as tables for other programs: CSV, one row for each subject on each device, and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dspkd.errors import UsageError
from dspkd.fileio import write_text

__all__ = ["results_csv", "results_markdown", "table_writer"]

# A spreadsheet takes text that begins with one of these for a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def results_csv(results: Sequence[Mapping[str, Any]]) -> str:
    """RFC 4180; the units stand in the names of the columns, an empty cell was not measured."""
    text = io.StringIO()
    writer = csv.writer(text)
    rows = [row for result in results for row in _rows(result)]
    writer.writerow(COLUMNS)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(FORMULA):
        return "'" + value
    return "" if value is None else value


def _rows(result: Mapping[str, Any]) -> list[list[Any]]:
    ratios = {ratio["subject"]: ratio for ratio in result["ratios"]}
    return [
        [column(result, subject, ratios.get(subject["name"])) for column in COLUMNS.values()]
        for subject in result["subjects"]
    ]


Column = Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any] | None], Any]


def _of(*path: str) -> Column:
    """A value of the subject, None where the way to it ends."""

    def column(result: Mapping[str, Any], subject: Mapping[str, Any], ratio: Mapping[str, Any] | None) -> Any:
        value: Any = subject
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    return column


def _end(number: int) -> Column:
    return lambda result, subject, ratio: subject["latency"]["p50_interval_ms"][number]


COLUMNS: dict[str, Column] = {
    "device": lambda result, subject, ratio: result.get("device", {}).get("url", "local"),
    "processor": lambda result, subject, ratio: result["environment"].get("cpu"),
    "threads": lambda result, subject, ratio: result["settings"].get("threads"),
    "measured": lambda result, subject, ratio: result.get("created"),
    "subject": _of("name"),
    "role": _of("role"),
    "architecture": _of("architecture"),
    "runtime": _of("runtime"),
    "precision": _of("precision"),
    "input_px": _of("complexity", "size"),
    "parameters": _of("complexity", "parameters"),
    "macs": _of("complexity", "macs"),
    "flops": _of("complexity", "flops"),
    "file_bytes": _of("file_bytes"),
    "load_ms": _of("load_ms"),
    "first_inference_ms": _of("first_inference_ms"),
    "calls": _of("latency", "n"),
    "p50_ms": _of("latency", "p50_ms"),
    "p50_low_ms": _end(0),
    "p50_high_ms": _end(1),
    "p90_ms": _of("latency", "p90_ms"),
    "p99_ms": _of("latency", "p99_ms"),
    "throughput_per_s": _of("throughput_per_s"),
    "memory_increase_mib": _of("memory", "increase_mib"),
    "val_balanced_accuracy": _of("validation", "balanced_accuracy"),
    "val_images": _of("validation", "n"),
    "teacher_over_student_latency": lambda result, subject, ratio: ratio["latency"]["ratio"] if ratio else None,
    "verdict": _of("validity", "verdict"),
    "weights_sha256": _of("weights_sha256"),
}
MARKDOWN = {
    "device": "device",
    "subject": "subject",
    "parameters": "parameters, M",
    "macs": "MACs, M",
    "file_bytes": "file, MB",
    "p50_ms": "p50, ms [95 %]",
    "p90_ms": "p90",
    "p99_ms": "p99",
    "val_balanced_accuracy": "balanced accuracy (val)",
    "teacher_over_student_latency": "teacher / student, latency",
    "verdict": "verdict",
}


def results_markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """One table, and under it the command of each result."""
    lines = ["| " + " | ".join(MARKDOWN.values()) + " |", "|---" * len(MARKDOWN) + "|"]
    for result in results:
        for values in _rows(result):
            row = dict(zip(COLUMNS, values, strict=True))
            lines.append("| " + " | ".join(_markdown_cell(name, row) for name in MARKDOWN) + " |")
    for result in results:
        if result.get("command"):
            lines += ["", f"    {result['command']}"]
    return "\n".join(lines) + "\n"


def _markdown_cell(name: str, row: Mapping[str, Any]) -> str:
    value = row[name]
    if value is None:
        return "not measured" if name != "teacher_over_student_latency" else ""
    if name == "p50_ms":
        return f"{value:.2f} [{row['p50_low_ms']:.2f}, {row['p50_high_ms']:.2f}]"
    if name in ("parameters", "macs", "file_bytes"):
        return f"{value / 1e6:.3f}" if name == "parameters" else f"{value / 1e6:.2f}"
    if isinstance(value, float):
        return f"{value:.3f}" if name == "val_balanced_accuracy" else f"{value:.2f}"
    return str(value).replace("|", "\\|")


def table_writer(out: Path) -> Callable[[Sequence[Mapping[str, Any]]], None] | None:
    """What writes a table to `out` by its suffix, .csv or .md; None for a page (.html)."""
    texts = {".csv": results_csv, ".md": results_markdown}
    suffix = out.suffix.lower()
    if suffix in (".html", ".htm"):
        return None
    if suffix not in texts:
        raise UsageError(f"--out {out}: no such kind of report", hint="name it .html, .csv or .md")
    return lambda results: write_text(out, texts[suffix](results))
