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
    columns = _columns(results)
    rows = [row for result in results for row in _rows(result, columns)]
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(FORMULA):
        return "'" + value
    return "" if value is None else value


Column = Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any] | None], Any]


def _of(*path: str) -> Column:
    """A value of the subject, None where the way to it ends."""

    def column(result: Mapping[str, Any], subject: Mapping[str, Any], ratio: Mapping[str, Any] | None) -> Any:
        value: Any = subject
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    return column


def _end(number: int, *path: str) -> Column:
    """One end of an interval of the subject."""
    interval = _of(*path)

    def column(result: Mapping[str, Any], subject: Mapping[str, Any], ratio: Mapping[str, Any] | None) -> Any:
        ends = interval(result, subject, ratio)
        return ends[number] if ends else None

    return column


def _of_batch(size: int, *path: str) -> Column:
    """A value of the subject's measurement with batches of `size`."""
    value = _of(*path)

    def column(result: Mapping[str, Any], subject: Mapping[str, Any], ratio: Mapping[str, Any] | None) -> Any:
        measured = next((one for one in subject.get("batches") or () if one["batch"] == size), None)
        return value(result, measured, ratio) if measured else None

    return column


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
    "p50_low_ms": _end(0, "latency", "p50_interval_ms"),
    "p50_high_ms": _end(1, "latency", "p50_interval_ms"),
    "p90_ms": _of("latency", "p90_ms"),
    "p90_low_ms": _end(0, "latency", "p90_interval_ms"),
    "p90_high_ms": _end(1, "latency", "p90_interval_ms"),
    "p90_early_stopping_ms": _of("latency", "p90_early_stopping_ms"),
    "p99_ms": _of("latency", "p99_ms"),
    "p99_low_ms": _end(0, "latency", "p99_interval_ms"),
    "p99_high_ms": _end(1, "latency", "p99_interval_ms"),
    "throughput_per_s": _of("throughput_per_s"),
    "burst_ms": _of("sustained", "burst_ms"),
    "sustained_ms": _of("sustained", "sustained_ms"),
    "sustained_over_burst": _of("sustained", "ratio", "ratio"),
    "sustained_seconds": _of("sustained", "seconds"),
    "energy_mj_per_inference": _of("energy", "mj_per_inference"),
    "energy_low_mj": _end(0, "energy", "interval"),
    "energy_high_mj": _end(1, "energy", "interval"),
    "energy_active_w": _of("energy", "active_w"),
    "energy_idle_w": _of("energy", "idle_w"),
    "energy_sensor": _of("energy", "sensor"),
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
    "p90_ms": "p90 [95 %]",
    "p99_ms": "p99 [95 %]",
    "sustained_ms": "sustained, ms (/ burst)",
    "energy_mj_per_inference": "energy, mJ [95 %]",
    "val_balanced_accuracy": "balanced accuracy (val)",
    "teacher_over_student_latency": "teacher / student, latency",
    "verdict": "verdict",
}
OPTIONAL = ("sustained_ms", "energy_mj_per_inference")
"""Left out of the Markdown table where nothing has one."""


def _columns(results: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    """The fixed ones, then two for each size of batch that anything was measured with."""
    subjects = [subject for result in results for subject in result["subjects"]]
    sizes = sorted({one["batch"] for subject in subjects for one in subject.get("batches") or ()})
    columns = dict(COLUMNS)
    for size in sizes:
        columns[f"batch_{size}_p50_ms"] = _of_batch(size, "latency", "p50_ms")
        columns[f"batch_{size}_throughput_per_s"] = _of_batch(size, "throughput_per_s")
    return columns


def _rows(result: Mapping[str, Any], columns: Mapping[str, Column]) -> list[list[Any]]:
    ratios = {ratio["subject"]: ratio for ratio in result["ratios"]}
    return [
        [column(result, subject, ratios.get(subject["name"])) for column in columns.values()]
        for subject in result["subjects"]
    ]


def results_markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """One table, and under it the command of each result."""
    columns = _columns(results)
    rows = [dict(zip(columns, values, strict=True)) for result in results for values in _rows(result, columns)]
    shown = {
        name: title
        for name, title in MARKDOWN.items()
        if name not in OPTIONAL or any(row[name] is not None for row in rows)
    }
    shown |= {
        name: name.replace("batch_", "batch ").replace("_throughput_per_s", ", images/s") for name in _rates(columns)
    }
    lines = ["| " + " | ".join(shown.values()) + " |", "|---" * len(shown) + "|"]
    lines += ["| " + " | ".join(_markdown_cell(name, row) for name in shown) + " |" for row in rows]
    for result in results:
        if result.get("command"):
            lines += ["", f"    {result['command']}"]
    return "\n".join(lines) + "\n"


def _rates(columns: Mapping[str, Column]) -> list[str]:
    return [name for name in columns if name.startswith("batch_") and name.endswith("_throughput_per_s")]


def _markdown_cell(name: str, row: Mapping[str, Any]) -> str:
    value = row[name]
    if value is None:
        return "not measured" if name != "teacher_over_student_latency" else ""
    if name in ("p50_ms", "p90_ms", "p99_ms"):
        low, high = (row[name.replace("_ms", f"_{end}_ms")] for end in ("low", "high"))
        return f"{value:.2f}" if low is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"
    if name == "sustained_ms":
        return f"{value:.2f} ({row['sustained_over_burst']:.2f})"
    if name == "energy_mj_per_inference" and row["energy_low_mj"] is not None:
        return f"{value:.2f} [{row['energy_low_mj']:.2f}, {row['energy_high_mj']:.2f}]"
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
