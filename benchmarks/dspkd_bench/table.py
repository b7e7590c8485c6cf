"""The results as tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

__all__ = ["cautions", "results_table"]

NOT_MEASURED = "not measured"


def results_table(results: dict[str, Any]) -> RenderableType:
    """One row per subject; larger batches and sustained load, if they were asked for; then how many times smaller and
    faster the students are than the teacher, and what could not be measured.
    """
    parts: list[RenderableType] = [_subjects(results)]
    if any(record.get("batches") for record in results["subjects"]):
        parts.append(_batches(results["subjects"]))
    if any(record.get("sustained") for record in results["subjects"]):
        parts += [_sustained(results["subjects"]), *_remarks(results["subjects"])]
    if results["ratios"]:
        parts += _ratios(results["ratios"])
    parts += [f"not measured: {failed['name']}: {failed['message']}" for failed in results.get("failed", [])]
    return Group(*parts, *cautions(results))


def cautions(results: dict[str, Any]) -> list[str]:
    """What has to stand beside the accuracies, each once."""
    said = [(record["validation"] or {}).get("caution") for record in results["subjects"]]
    return list(dict.fromkeys(filter(None, said)))


def _subjects(results: dict[str, Any]) -> Table:
    environment = results["environment"]
    table = _table(
        f"batch 1, {environment['threads']} thread(s), {environment['cpu']}, one interleaved run",
        *("", "params M", "MACs M", "FLOPs M", "file MB", "load ms", "first ms"),
        *("p50 ms", "p90", "p99", "memory MiB", "balanced acc. (val)"),
    )
    for record in results["subjects"]:
        complexity, latency, memory = record["complexity"], record["latency"], record["memory"]
        validation = record["validation"]
        table.add_row(
            f"[bold]{record['role']}[/] {record['name']}",
            f"{complexity['parameters'] / 1e6:.3f}",
            f"{complexity['macs'] / 1e6:.1f}",
            f"{complexity['flops'] / 1e6:.1f}",
            f"{record['file_bytes'] / 1e6:.2f}",
            _or_dash(record.get("load_ms"), ".1f"),
            _or_dash(record.get("first_inference_ms"), ".1f"),
            f"{latency['p50_ms']:.2f}",
            f"{latency['p90_ms']:.2f}",
            f"{latency['p99_ms']:.2f}",
            f"{memory['increase_mib']:.0f}" if memory else NOT_MEASURED,
            f"{validation['balanced_accuracy']:.3f}" if validation else NOT_MEASURED,
        )
    return table


def _batches(records: Sequence[dict[str, Any]]) -> Table:
    sizes = sorted({one["batch"] for record in records for one in record.get("batches", [])})
    table = _table("pictures a second, by pictures in a call", "", "1", *map(str, sizes))
    for record in records:
        found = {one["batch"]: one["throughput_per_s"] for one in record.get("batches", [])}
        rates = [record["throughput_per_s"], *(found.get(size) for size in sizes)]
        table.add_row(record["name"], *(_or_dash(rate, ".1f") for rate in rates))
    return table


def _sustained(records: Sequence[dict[str, Any]]) -> Table:
    columns = ("", "seconds", "burst ms", "sustained ms", "sustained / burst [95 %]", "mJ an inference [95 %]")
    table = _table("each alone without a break, after a pause", *columns)
    for record in records:
        sustained = record.get("sustained")
        if not sustained:
            continue
        low, high = sustained["ratio"]["interval"]
        table.add_row(
            record["name"],
            f"{sustained['seconds']:.0f}",
            f"{sustained['burst_ms']:.2f}",
            f"{sustained['sustained_ms']:.2f}",
            f"{sustained['ratio']['ratio']:.2f} [{low:.2f}, {high:.2f}]",
            _energy(record.get("energy") or {}),
        )
    return table


def _energy(energy: dict[str, Any]) -> str:
    if "mj_per_inference" not in energy:
        return NOT_MEASURED
    low, high = energy["interval"]
    return f"{energy['mj_per_inference']:.2f} [{low:.2f}, {high:.2f}]"


def _remarks(records: Sequence[dict[str, Any]]) -> list[str]:
    """Throttling and drifts, which sensor measured the energy, or why none did: each once."""
    lines = []
    for record in records:
        lines += [
            f"{record['name']}, sustained: {remark}" for remark in (record.get("sustained") or {}).get("remarks", [])
        ]
        energy = record.get("energy") or {}
        if "not_measured" in energy:
            lines.append(f"energy is not measured: {energy['not_measured']}")
        elif energy:
            lines.append(f"energy above idle, by {energy['sensor']}, about {energy['rate_hz']:.0f} times a second")
    return list(dict.fromkeys(lines))


def _ratios(ratios: Sequence[dict[str, Any]]) -> list[RenderableType]:
    columns = ("student", "teacher", "parameters", "MACs", "file", "latency [95 %]")
    table = _table("teacher / student (how many times smaller or faster)", *columns)
    for ratio in ratios:
        low, high = ratio["latency"]["interval"]
        table.add_row(
            ratio["subject"],
            ratio["teacher"],
            f"{ratio['parameters']:.1f}x",
            f"{ratio['macs']:.1f}x",
            f"{ratio['file_bytes']:.1f}x",
            f"{ratio['latency']['ratio']:.1f}x [{low:.1f}, {high:.1f}]{'' if ratio['same_runtime'] else ' *'}",
        )
    if all(ratio["same_runtime"] for ratio in ratios):
        return [table]
    return [table, "* on different runtimes, so the runtimes are in it too: export and measure the teacher as well"]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        text = column in ("", "student", "teacher")
        table.add_column(column, justify="left" if text else "right", overflow="fold" if text else "ellipsis")
    return table


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
