"""The results as tables on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

__all__ = ["results_table"]


def results_table(results: dict[str, Any]) -> RenderableType:
    """One row per subject, then how many times smaller and faster the students are than the teacher."""
    environment = results["environment"]
    subjects = Table(
        title=f"batch 1, {environment['threads']} thread(s), {environment['cpu']}, one interleaved run",
        title_justify="left",
    )
    subjects.add_column("", overflow="fold")
    columns = ("params M", "MACs M", "FLOPs M", "file MB", "p50 ms", "p90", "p99", "memory MiB", "balanced acc. (val)")
    for column in columns:
        subjects.add_column(column, justify="right")
    for record in results["subjects"]:
        complexity, latency, memory = record["complexity"], record["latency"], record["memory"]
        validation = record["validation"]
        subjects.add_row(
            f"[bold]{record['role']}[/] {record['name']}",
            f"{complexity['parameters'] / 1e6:.3f}",
            f"{complexity['macs'] / 1e6:.1f}",
            f"{complexity['flops'] / 1e6:.1f}",
            f"{record['file_bytes'] / 1e6:.2f}",
            f"{latency['p50_ms']:.2f}",
            f"{latency['p90_ms']:.2f}",
            f"{latency['p99_ms']:.2f}",
            f"{memory['increase_mib']:.0f}" if memory else "not measured",
            f"{validation['balanced_accuracy']:.3f}" if validation else "not measured",
        )
    if not results["ratios"]:
        return subjects
    ratios = Table(title="teacher / student (how many times smaller or faster)", title_justify="left")
    ratios.add_column("student", overflow="fold")
    ratios.add_column("teacher", overflow="fold")
    for column in ("parameters", "MACs", "file", "latency [95 %]"):
        ratios.add_column(column, justify="right")
    for ratio in results["ratios"]:
        low, high = ratio["latency"]["interval"]
        ratios.add_row(
            ratio["subject"],
            ratio["teacher"],
            f"{ratio['parameters']:.1f}x",
            f"{ratio['macs']:.1f}x",
            f"{ratio['file_bytes']:.1f}x",
            f"{ratio['latency']['ratio']:.1f}x [{low:.1f}, {high:.1f}]{'' if ratio['same_runtime'] else ' *'}",
        )
    if all(ratio["same_runtime"] for ratio in results["ratios"]):
        return Group(subjects, ratios)
    return Group(
        subjects,
        ratios,
        "* on different runtimes, so the runtimes are in it too: export and measure the teacher as well",
    )
