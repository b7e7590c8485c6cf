"""What the report shows of one bench: the rows, charts and facts of one device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

from dspkd_bench.charts import Point, Series, line_chart, percent_range, scatter_chart
from dspkd_bench.charts_latency import Strip, strip_chart, time_chart
from dspkd_bench.report_numbers import ROLES, RUNTIMES, ms, percent, short_name, times, unbroken

__all__ = ["device_titles", "device_view", "file_row", "headline_ratio"]

KINDS = {
    "local": "Measured on the machine that ran the bench.",
    "ssh": "Measured over ssh.",
    "adb": "Measured over adb, on a phone.",
}
VERDICTS = {
    "valid": "Valid run.",
    "semi-valid": "Semi-valid run: read this first.",
    "invalid": "Invalid run: do not quote these numbers.",
}
CURVES = 6
"""Sensors in one chart; the colours of the style sheet are as many."""
ORDER = list(ROLES)
Reading = Callable[[Mapping[str, Any]], Mapping[str, float]]


def device_titles(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each, none twice."""
    names = [_name(result) for result in results]
    urls = [str(_device(result).get("url", "local")) for result in results]
    titles: list[str] = []
    for name, url in zip(names, urls, strict=True):
        title = name if names.count(name) == 1 or url == "local" else f"{name} ({url})"
        same = sum(known == title or known.startswith(f"{title}, run ") for known in titles)
        titles.append(f"{title}, run {same + 1}" if same else title)
    return titles


def _device(result: Mapping[str, Any]) -> Mapping[str, Any]:
    return result.get("device") or {}


def _name(result: Mapping[str, Any]) -> str:
    return str(_device(result).get("name") or result["environment"].get("cpu") or _device(result).get("url") or "local")


def device_view(result: Mapping[str, Any], title: str, number: int) -> dict[str, Any]:
    """The template's variables for one device."""
    subjects = sorted(result["subjects"], key=lambda s: (ORDER.index(s["role"]), -s["latency"]["p50_ms"]))
    ratios = {r["subject"]: r for r in result["ratios"]}
    rows = [file_row(s) | {"ratio": ratios.get(s["name"])} for s in subjects]
    return {
        "id": f"device-{number}",
        "title": title,
        "kind": KINDS.get(str(_device(result).get("kind", "local")), ""),
        "facts": _facts(result),
        "settings": result["settings"],
        "verdict": _verdict(result),
        "failed": result.get("failed") or [],
        "rows": rows,
        "roles": [role for role in ORDER if any(s["role"] == role for s in subjects)],
        "networks": _networks(rows),
        "has_cold": any(s.get("load_ms") is not None for s in subjects),
        "has_memory": any(s["memory"] for s in subjects),
        "has_early_stopping": any(s["latency"].get("p90_early_stopping_ms") for s in subjects),
        "has_throughput": any(s.get("throughput_per_s") for s in subjects),
        "has_ratio": bool(ratios),
        "all_same_runtime": all(r["same_runtime"] for r in ratios.values()),
        **_scatter(rows),
        **_strips(rows),
        "times": [chart for row in rows if (chart := _over_time(row))],
        "peers": _peers(rows),
        "batches": _batches(rows),
        "sustained": _sustained(rows),
        "energy": _energy(rows),
        "phased": bool(_phase_starts([s for s in result.get("states") or [] if s.get("at_ms") is not None])),
        "conditions": _conditions(result.get("states") or []),
        "environment": _environment(result),
        "command": result.get("command", ""),
    }


def file_row(subject: Mapping[str, Any]) -> dict[str, Any]:
    """A subject with the names that a table shows."""
    names = {"short": short_name(subject), "runtime_title": RUNTIMES.get(subject["target"], subject["target"])}
    return {**subject, **names}


# Words --------------------------------------------------------------------------------------------


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What one wants to know of a device before its numbers."""
    device, environment, settings = _device(result), result["environment"], result["settings"]
    affinity = environment.get("affinity")
    known = [
        ("Processor", environment.get("cpu") if environment.get("cpu") != _name(result) else None),
        ("Machine", environment.get("machine")),
        *(device.get("facts") or {}).items(),
        ("Threads", settings.get("threads")),
        ("Allowed cores", ", ".join(map(str, affinity)) if affinity else None),
        ("Governor", environment.get("governor")),
        ("Batch", settings.get("batch")),
        ("Measured", str(result.get("created", ""))[:10]),
    ]
    if device.get("url") not in (None, "local"):
        known.insert(0, ("Address", device["url"]))
    return [(str(label), str(value)) for label, value in known if value not in (None, "")]


def _verdict(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Whether the run may be believed, in words; None for results from before there were verdicts."""
    validity = result.get("validity")
    if not validity:
        return None
    reasons = [unbroken(reason) for reason in validity["reasons"]]
    return {"verdict": validity["verdict"], "title": VERDICTS[validity["verdict"]], "reasons": reasons}


def _environment(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    environment, settings = result["environment"], result["settings"]
    packages = ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items() if version)
    load = [environment.get("load_average_1min"), environment.get("load_average_1min_after")]
    rows = [
        ("Measured", _when(str(result.get("created", "")))),
        ("Processor", environment.get("cpu")),
        ("Cores", environment.get("cores")),
        ("Threads", environment.get("threads")),
        ("Allowed cores", ", ".join(map(str, environment.get("affinity") or []))),
        ("Frequency governor", environment.get("governor")),
        ("Load average (1 min) before, after", " and ".join("not known" if v is None else f"{v:.2f}" for v in load)),
        ("System", f"{environment.get('os')}, {environment.get('machine')}"),
        ("Python", environment.get("python")),
        ("Packages", packages),
        ("Input", f"{settings.get('input')}, batch {settings.get('batch')}"),
    ]
    return [(name, "not known" if value in (None, "") else str(value)) for name, value in rows]


def _when(created: str) -> str:
    """2026-11-27T10:00:00+00:00 -> 2026-11-27 10:00 UTC."""
    return f"{created[:10]} {created[11:16]} UTC" if created.endswith("+00:00") else created


def _networks(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Each network once, by its weights; a stock export is of one that stands there already."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        found.setdefault(row["weights_sha256"], row)
    return list(found.values())


# Charts -------------------------------------------------------------------------------------------


def _scatter(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    points = [_point(row) for row in rows if row["validation"]]
    wide, narrow = (
        scatter_chart(
            points,
            title="Balanced accuracy over median latency; the area of a circle is the size of the file",
            x_label="median latency in ms, batch 1",
            y_label="balanced accuracy on the validation images, %",
            narrow=narrow,
        )
        for narrow in (False, True)
    )
    return {
        "scatter": wide,
        "scatter_narrow": narrow,
        "scatter_keys": [{"label": point.label, "role": point.role, "detail": point.detail} for point in points],
        "scatter_from_zero": bool(points) and percent_range([p.y for p in points])[0] == 0,
        "scatter_sizes": _from_to([p.weight / 1e6 for p in points]) if points else "",
    }


def _point(row: Mapping[str, Any]) -> Point:
    latency_ms, score = row["latency"]["p50_ms"], row["validation"]["balanced_accuracy"]
    detail = f"{ms(latency_ms)} ms, {row['file_bytes'] / 1e6:.1f} MB, {percent(score)} %"
    return Point(
        label=f"{row['runtime_title']} {row['precision']}",
        role=row["role"],
        x=latency_ms,
        y=100 * score,
        weight=row["file_bytes"],
        detail=unbroken(f"{row['short']}, {detail}"),
    )


def _from_to(megabytes: Sequence[float]) -> str:
    texts = [f"{value:.1f}" for value in (min(megabytes), max(megabytes))]
    return f"{texts[0]} MB" if texts[0] == texts[1] else f"{texts[0]} to {texts[1]} MB"


def _strips(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    strips = [
        Strip(row["name"], row["role"], *(row["latency"][f"{key}_ms"] for key in ("min", "p50", "p90", "p99", "max")))
        for row in sorted(rows, key=lambda row: row["latency"]["p50_ms"])
    ]
    title, label = "Latency of each file, from the fastest call to p99", "latency in ms, batch 1"
    wide, narrow = (strip_chart(strips, title=title, x_label=label, narrow=narrow) for narrow in (False, True))
    return {"strips": wide, "strips_narrow": narrow}


def _over_time(row: Mapping[str, Any]) -> dict[str, Any] | None:
    series, latency = row.get("series"), row["latency"]
    if not series or not series["ms"]:
        return None
    chart = time_chart(
        series["at_s"],
        series["ms"],
        role=row["role"],
        title=f"Latency of {row['name']} over time, in ms",
        guides=[(f"p{q}", latency[f"p{q}_ms"]) for q in (50, 90, 99)],
    )
    return {"name": row["name"], "role": row["role"], "flags": row.get("flags") or [], "chart": chart}


def _conditions(states: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Charts of what the device was like meanwhile; none of what it did not say at least three times."""
    timed = [state for state in states if state.get("at_ms") is not None]
    kinds: tuple[tuple[str, str, Reading], ...] = (
        ("Temperature", "temperature, °C", lambda state: state.get("temperatures_c") or {}),
        ("Clock", "clock, GHz", _clocks),
        ("Power", "power, W", lambda state: state.get("power_w") or {}),
    )
    return [chart for title, label, read in kinds if (chart := _condition(timed, title, label, read))]


def _clocks(state: Mapping[str, Any]) -> dict[str, float]:
    clocks = state.get("clocks_khz")
    return {"fastest core": max(clocks) / 1e6, "slowest core": min(clocks) / 1e6} if clocks else {}


def _condition(states: Sequence[Mapping[str, Any]], title: str, label: str, read: Reading) -> dict[str, Any] | None:
    lines: dict[str, list[tuple[float, float]]] = {}
    for state in states:
        for name, value in read(state).items():
            lines.setdefault(name, []).append(((state["at_ms"] - states[0]["at_ms"]) / 1e3, value))
    lines = {name: points for name, points in lines.items() if len(points) >= 3}
    if not lines:
        return None
    breaks = _phase_starts(states)
    highest = sorted(lines, key=lambda name: -max(v for _, v in lines[name]))
    series = [
        Series(name, f"c{i}", lines[name], variant, breaks if i == 0 else ())
        for i, (name, variant) in enumerate(zip(highest[:CURVES], cycle((0, 1, 2)), strict=False))
    ]
    return {
        "title": title,
        "chart": line_chart(series, title=f"{title} over time", x_label="seconds", y_label=label, size=(320, 190)),
        "legend": [{"name": s.name, "role": s.role, "variant": s.variant} for s in series],
        "left_out": len(highest) - len(series),
    }


def _phase_starts(states: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds at which batches, and the phases of each file alone, began."""
    starts: dict[str, float] = {}
    for state in states:
        kind = {"batches": "batches", "idle": "alone", "sustained": "alone"}.get(str(state.get("phase")))
        if kind:
            starts.setdefault(kind, (state["at_ms"] - states[0]["at_ms"]) / 1e3)
    return list(starts.values())


# Tables -------------------------------------------------------------------------------------------


def _peers(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each network and precision: our fastest file beside the fastest stock export of the same weights."""
    found = []
    peers = [row for row in rows if row["role"] == "peer"]
    for weights, precision in dict.fromkeys((row["weights_sha256"], row["precision"]) for row in peers):
        same = [r for r in rows if r["weights_sha256"] == weights and r["precision"] == precision]
        ours = [row for row in same if row["role"] != "peer" and row["target"] != "pytorch"]
        if not ours:
            continue
        best, other = (
            min(group, key=lambda row: row["latency"]["p50_ms"])
            for group in (ours, [row for row in same if row["role"] == "peer"])
        )
        share = best["latency"]["p50_ms"] / other["latency"]["p50_ms"]
        found.append({"precision": precision, "ours": best, "peer": other, "share": f"{share:.2f}"})
    return found


def _batches(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Images a second at each batch; batch 1 is the main measurement."""
    measured = [(row, {1: row, **{one["batch"]: one for one in row["batches"]}}) for row in rows if row.get("batches")]
    if not measured:
        return None
    sizes = sorted({size for _, batches in measured for size in batches})
    cells = [{"row": row, "cells": [_batch(batches.get(size), size) for size in sizes]} for row, batches in measured]
    return {"sizes": sizes, "rows": cells}


def _batch(measured: Mapping[str, Any] | None, size: int) -> dict[str, Any] | None:
    if measured is None:
        return None
    throughput = measured.get("throughput_per_s") or 1e3 * size / measured["latency"]["mean_ms"]
    return {"throughput": f"{throughput:.0f}" if throughput >= 99.5 else f"{throughput:.1f}", **measured["latency"]}


def _sustained(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    measured = [row for row in rows if row.get("sustained")]
    if not measured:
        return None
    charts = []
    for row in measured:
        load = row["sustained"]
        if load.get("series") and load["series"]["ms"]:
            chart = time_chart(
                load["series"]["at_s"],
                load["series"]["ms"],
                role=row["role"],
                title=f"Latency of {row['name']} under continuous load, in ms",
                guides=[("burst", load["burst_ms"]), ("sustained", load["sustained_ms"])],
            )
            charts.append(
                {"name": row["name"], "role": row["role"], "flags": load.get("remarks") or [], "chart": chart}
            )
    return {"rows": measured, "charts": charts}


def _energy(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Rows with a figure, and for the others each reason once."""
    asked = [row for row in rows if row.get("energy")]
    if not asked:
        return None
    measured = [row for row in asked if "mj_per_inference" in row["energy"]]
    by_name = {row["name"]: row["energy"]["mj_per_inference"] for row in measured}
    reasons: dict[str, list[str]] = {}
    for row in asked:
        if "not_measured" in row["energy"]:
            reasons.setdefault(row["energy"]["not_measured"], []).append(row["name"])
    return {
        "rows": [{"row": row, "ratio": _energy_ratio(row, by_name)} for row in measured],
        "reasons": [
            {"reason": reason, "names": [] if len(names) == len(rows) else names} for reason, names in reasons.items()
        ],
    }


def _energy_ratio(row: Mapping[str, Any], by_name: Mapping[str, float]) -> str | None:
    teacher = by_name.get(row["ratio"]["teacher"]) if row["ratio"] else None
    own = by_name[row["name"]]
    return times(teacher / own) if teacher and own > 0 else None


def headline_ratio(
    results: Sequence[Mapping[str, Any]],
) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]] | None:
    """The fastest distilled student that was measured on the same runtime as the teacher, of the first result that
    has one: (ratio, student, teacher).
    """
    choices = []
    for number, result in enumerate(results):
        subjects = {s["name"]: s for s in result["subjects"]}
        for ratio in result["ratios"]:
            student = subjects[ratio["subject"]]
            if student["role"] == "peer":
                continue
            rank = (number, student["role"] != "student", not ratio["same_runtime"], student["latency"]["p50_ms"])
            choices.append((rank, (ratio, student, subjects[ratio["teacher"]])))
    return min(choices, key=lambda c: c[0])[1] if choices else None
