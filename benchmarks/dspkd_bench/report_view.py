"""What the report shows of all that was measured and trained: headline, overview, accuracy, classes. One device's part
is in `report_device`. The template only lays it out.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dspkd.protocol import caution
from dspkd_bench.charts import Series, line_chart
from dspkd_bench.charts_calibration import reliability_chart
from dspkd_bench.report_device import device_titles, device_view, file_row, headline_ratio
from dspkd_bench.report_numbers import ROLES, RUNTIMES, count, ms, percent, times, unbroken
from dspkd_bench.table import cautions

if TYPE_CHECKING:
    from dspkd_bench.report import ReportContent, RunSummary

__all__ = ["view"]

SCORES = (("accuracy", "Accuracy"), ("balanced_accuracy", "Balanced accuracy"), ("macro_f1", "Macro-F1"))
# DSP-KD, Tables 1 and 6: Res2Net101 against ShuffleNetV2 x1.0 at 224 px.
PAPER_RATIOS = {"parameters": 34.2, "macs": 54.7, "latency": 12.9}
_ORDER = list(ROLES)


def view(content: ReportContent) -> dict[str, Any]:
    """The template's variables."""
    runs = sorted((run for run in content.runs if run.metrics), key=lambda r: _ORDER.index(r.role))
    groups = _groups(runs)
    detailed = [_run(run) for run in runs if run.metrics.get("per_class")]
    titles = device_titles(content.results)
    devices = [
        device_view(result, title, number)
        for number, (result, title) in enumerate(zip(content.results, titles, strict=True), start=1)
    ]
    return {
        "title": content.title,
        "created": content.created,
        "notes": list(content.notes),
        "cautions": _cautions(content),
        "tiles": _tiles(content.results, groups),
        "findings": _findings(groups),
        "pairs": _pairs(content.results, titles),
        "matrix": _matrix(content.results, titles) if len(content.results) > 1 else None,
        "scores": SCORES,
        "groups": groups,
        "part": _parts(runs),
        "curves": _curves(runs),
        "runs": detailed,
        "comparison": _comparison(detailed),
        "devices": devices,
        "certificates": _certificates(devices),
        "reliability": _reliability(runs, content.results),
        "strip": base64.b64encode(content.strip_png).decode() if content.strip_png else None,
        "strip_caption": content.strip_caption,
        "commands": content.commands,
        "roles": ROLES,
    }


def _cautions(content: ReportContent) -> list[str]:
    own = [caution(run.card.get("data", {})) for run in content.runs]
    measured = [sentence for result in content.results for sentence in cautions(result)]
    return list(dict.fromkeys([*filter(None, own), *measured]))


# Accuracy -----------------------------------------------------------------------------------------


def _parts(runs: Sequence[RunSummary]) -> str:
    names = {"test": "test images, used once, after training", "val": "validation images, which chose the epoch"}
    seen = dict.fromkeys((names.get(r.part, r.part), r.metrics.get("n")) for r in runs)
    return "; ".join(f"{count} {part}" for part, count in seen)


def _groups(runs: Sequence[RunSummary]) -> list[dict[str, Any]]:
    """Runs of one role and architecture together: seeds of the same experiment, with their mean and range."""
    grouped: dict[tuple[str, str], list[RunSummary]] = {}
    for run in runs:
        grouped.setdefault((run.role, run.card["architecture"]), []).append(run)
    groups = []
    for (role, architecture), members in grouped.items():
        scores = {}
        for key, _ in SCORES:
            values = [float(m.metrics[key]) for m in members if key in m.metrics]
            if values:
                interval = members[0].metrics.get("intervals", {}).get(key) if len(members) == 1 else None
                scores[key] = {"mean": fmean(values), "low": min(values), "high": max(values), "interval": interval}
        groups.append(
            {
                "role": role,
                "architecture": architecture.rpartition("/")[2],
                "members": members,
                "scores": scores,
                "part": members[0].part,
            }
        )
    return groups


def _first(groups: Sequence[dict[str, Any]], role: str) -> dict[str, Any] | None:
    return next((g for g in groups if g["role"] == role and "balanced_accuracy" in g["scores"]), None)


def _findings(groups: Sequence[dict[str, Any]]) -> list[str]:
    """What the numbers say about distillation, in sentences, whichever way it went."""
    teacher, alone, distilled = (_first(groups, role) for role in ("teacher", "baseline", "student"))
    found = []
    if alone and not distilled:
        found.append("The student here was trained alone; none of these networks was distilled.")
    if distilled and alone and distilled["architecture"] == alone["architecture"]:
        ours, theirs = distilled["scores"]["balanced_accuracy"], alone["scores"]["balanced_accuracy"]
        gain = ours["mean"] - theirs["mean"]
        if round(100 * gain, 1) == 0:
            direction = "makes no difference to"
        else:
            direction = f"{'gains' if gain > 0 else 'loses'} {100 * abs(gain):.1f} points of"
        text = (
            f"Distillation {direction} balanced accuracy against the same network trained alone "
            f"({percent(ours['mean'])} and {percent(theirs['mean'])} %)"
        )
        found.append(f"{text}. {_certainty(ours, theirs, len(distilled['members']), len(alone['members']))}".strip())
    if teacher and distilled:
        gap = teacher["scores"]["balanced_accuracy"]["mean"] - distilled["scores"]["balanced_accuracy"]["mean"]
        found.append(
            f"The distilled student stands {100 * abs(gap):.1f} points {'below' if gap > 0 else 'above'} its teacher "
            f"({percent(teacher['scores']['balanced_accuracy']['mean'])} %)."
        )
    return [unbroken(sentence) for sentence in found]


def _certainty(ours: Mapping[str, Any], theirs: Mapping[str, Any], seeds: int, other_seeds: int) -> str:
    if min(seeds, other_seeds) > 1:
        apart = ours["low"] > theirs["high"] or ours["high"] < theirs["low"]
        reached = f"Over {seeds} and {other_seeds} seeds the two ranges "
        return reached + ("do not overlap." if apart else "overlap: the seeds alone explain a difference of this size.")
    a, b = ours["interval"], theirs["interval"]
    if a is None or b is None:
        return "No intervals were computed, so chance is not excluded."
    if a[0] > b[1] or a[1] < b[0]:
        return "The two 95 % intervals do not overlap."
    return "The 95 % intervals overlap and there is one seed of each: this run alone does not decide it."


# Headline and overview ----------------------------------------------------------------------------


def _tiles(results: Sequence[Mapping[str, Any]], groups: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    tiles = []
    found = headline_ratio(results)
    if found:
        ratio, student, teacher = found
        own, theirs = student["complexity"], teacher["complexity"]
        low, high = ratio["latency"]["interval"]
        where = RUNTIMES.get(student["target"], student["target"])
        tiles = [
            _tile(
                times(ratio["parameters"]),
                "fewer parameters",
                f"{count(theirs['parameters'])} → {count(own['parameters'])}",
            ),
            _tile(times(ratio["macs"]), "fewer multiply-adds", f"{count(theirs['macs'])} → {count(own['macs'])} MACs"),
        ]
        # Against a teacher on another runtime the ratio would praise the runtime.
        if ratio["same_runtime"]:
            tiles.append(
                _tile(
                    times(ratio["latency"]["ratio"]),
                    "faster",
                    f"{ms(teacher['latency']['p50_ms'])} → {ms(student['latency']['p50_ms'])} ms in {where}, "
                    f"95 % interval {times(low)} – {times(high)}",
                )
            )
    teacher_group, student_group = _first(groups, "teacher"), _first(groups, "student") or _first(groups, "baseline")
    if teacher_group and student_group:
        ours, theirs = (
            student_group["scores"]["balanced_accuracy"]["mean"],
            teacher_group["scores"]["balanced_accuracy"]["mean"],
        )
        part = "test" if student_group["part"] == "test" else "validation"
        tiles.append(
            _tile(
                f"{100 * (ours - theirs):+.1f}".replace("-", "−"),
                "points of balanced accuracy",
                f"{percent(theirs)} → {percent(ours)} % on the {part} images",
            )
        )
    return tiles


def _tile(value: str, label: str, note: str) -> dict[str, str]:
    return {"value": value, "label": label, "note": unbroken(note)}


def _pairs(results: Sequence[Mapping[str, Any]], titles: Sequence[str]) -> list[dict[str, Any]]:
    """The headline's teacher and student in numbers, a line for each quantity, beside the paper's ratios; the latency
    once for each device.
    """
    found = headline_ratio(results)
    if not found:
        return []
    ratio, student, teacher = found
    own, theirs = student["complexity"], teacher["complexity"]
    lines = [
        _pair("Parameters", ratio["parameters"], (count(theirs["parameters"]), count(own["parameters"])), "parameters"),
        _pair("Multiply-adds (MACs)", ratio["macs"], (count(theirs["macs"]), count(own["macs"])), "macs"),
        _pair("File size", ratio["file_bytes"], (_megabytes(teacher), _megabytes(student)))
        | {"where": _how(student, teacher)},
    ]
    for result, title in zip(results, titles, strict=True):
        found = headline_ratio([result])
        if found and found[0]["same_runtime"]:
            ratio, student, teacher = found
            both = (f"{ms(teacher['latency']['p50_ms'])} ms", f"{ms(student['latency']['p50_ms'])} ms")
            where = [_how(student, teacher), *([title] if len(results) > 1 else [])]
            lines.append(
                _pair("Median latency", ratio["latency"]["ratio"], both, "latency")
                | {"interval": ratio["latency"]["interval"], "where": ", ".join(where)}
            )
    return lines


def _pair(title: str, ratio: float, both: tuple[str, str], paper: str = "") -> dict[str, Any]:
    """`both`: the teacher's and the student's value."""
    return {
        "title": title,
        "where": "",
        "ratio": ratio,
        "teacher": both[0],
        "student": both[1],
        "paper": PAPER_RATIOS.get(paper),
        "interval": None,
    }


def _megabytes(subject: Mapping[str, Any]) -> str:
    return f"{subject['file_bytes'] / 1e6:.1f} MB"


def _how(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> str:
    where = RUNTIMES.get(student["target"], student["target"])
    if student["precision"] == teacher["precision"]:
        return f"{where} {student['precision']}"
    return f"{where}, {teacher['precision']} to {student['precision']}"


def _matrix(results: Sequence[Mapping[str, Any]], titles: Sequence[str]) -> dict[str, Any]:
    """A line for each file, a column for each device: how many times faster than the teacher there, and the latency."""
    lines: dict[tuple[str, ...], dict[str, Any]] = {}
    for place, result in enumerate(results):
        ratios = {ratio["subject"]: ratio for ratio in result["ratios"]}
        for subject in result["subjects"]:
            key = tuple(str(subject[k]) for k in ("role", "weights_sha256", "target", "precision", "name"))
            line = lines.setdefault(key, {"row": file_row(subject), "cells": [None] * len(results)})
            line["cells"][place] = {
                "ratio": ratios.get(subject["name"]),
                "p50_ms": subject["latency"]["p50_ms"],
                "verdict": (subject.get("validity") or {}).get("verdict"),
            }

    def rank(line: Mapping[str, Any]) -> tuple[int, float]:
        return _ORDER.index(line["row"]["role"]), min(cell["p50_ms"] for cell in line["cells"] if cell)

    ordered = sorted(lines.values(), key=rank)
    return {
        "devices": [{"title": title, "id": f"device-{i}"} for i, title in enumerate(titles, start=1)],
        "lines": ordered,
        "doubtful": any(c and c["verdict"] not in (None, "valid") for line in ordered for c in line["cells"]),
    }


# Curves, classes, confusion -----------------------------------------------------------------------


def _curves(runs: Sequence[RunSummary]) -> dict[str, Any] | None:
    loss, score = [], []
    seen: dict[str, int] = {}
    for run in runs:
        if not run.history:
            continue
        variant = seen.get(run.role, 0)
        seen[run.role] = variant + 1
        lines = run.history
        breaks = [b["global_epoch"] - 0.5 for a, b in itertools.pairwise(lines) if a["stage"] != b["stage"]]
        loss.append(
            Series(run.name, run.role, [(r["global_epoch"], r["train_loss"]) for r in lines], variant, breaks, False)
        )
        points = [(r["global_epoch"], 100 * r["val"]["balanced_accuracy"]) for r in lines]
        score.append(Series(run.name, run.role, points, variant, breaks))
    if not loss:
        return None
    return {
        "loss": line_chart(loss, title="Training loss per epoch", x_label="epoch", y_label="training loss", log_y=True),
        "score": line_chart(
            score,
            title="Validation balanced accuracy per epoch",
            x_label="epoch",
            y_label="validation balanced accuracy, %",
            y_range=(0.0, 100.0),
        ),
        "legend": [{"name": s.name, "role": s.role, "variant": s.variant % 3} for s in score],
        "staged": any(s.breaks for s in score),
    }


def _run(run: RunSummary) -> dict[str, Any]:
    classes, matrix = run.card["classes"], run.metrics.get("confusion") or []
    return {
        "name": run.name,
        "role": run.role,
        "classes": classes,
        "long_names": any(len(name) > 5 for name in classes),
        "per_class": {name: run.metrics["per_class"][name] for name in classes},
        "confusion": [
            (name, [(count, count / max(1, sum(row))) for count in row])
            for name, row in zip(classes, matrix, strict=False)
        ],
    }


def _comparison(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """F1 of each class for every run, with the number of images that the last run was judged on."""
    if not runs:
        return []
    return [
        {
            "name": name,
            "support": own["support"],
            "f1": [run["per_class"][name]["f1"] if name in run["per_class"] else None for run in runs],
        }
        for name, own in runs[-1]["per_class"].items()
    ]


def _certificates(devices: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A certificate is of a file, so one that was measured on several devices stands here once."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in (row for device in devices for row in device["rows"] if row["certificate"]):
        key = [row[k] for k in ("role", "weights_sha256", "target", "precision", "name", "certificate", "validation")]
        found.setdefault(json.dumps(key, sort_keys=True), row)
    return sorted(found.values(), key=lambda row: _ORDER.index(row["role"]))


# Reliability --------------------------------------------------------------------------------------


def _reliability(runs: Iterable[RunSummary], results: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Diagrams of the runs and of the exported files, of those that know their calibration."""
    trained = [
        _diagram(run.name, run.role, run.metrics["calibration"]) for run in runs if run.metrics.get("calibration")
    ]
    files: dict[tuple[str, ...], dict[str, Any]] = {}
    for result in results:
        for subject in result["subjects"]:
            certificate, deployed = subject["certificate"], (subject["validation"] or {}).get("calibration")
            key = tuple(str(subject[k]) for k in ("weights_sha256", "target", "precision", "name"))
            if certificate and deployed and key not in files:
                pytorch = (certificate.get("pytorch") or {}).get("calibration")
                files[key] = _diagram(subject["name"], subject["role"], deployed, pytorch)
    ordered = sorted(files.values(), key=lambda d: (_ORDER.index(d["role"]), d["name"]))
    return {"runs": trained, "files": ordered} if trained or ordered else None


def _diagram(
    name: str, role: str, calibration: Mapping[str, Any], reference: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "name": name,
        "role": role,
        "ece": calibration["ece"],
        "pytorch_ece": reference["ece"] if reference else None,
        "bins": calibration["bins"],
        "chart": reliability_chart(
            calibration["bins"],
            role=role,
            title=f"Reliability of {name}",
            reference=reference["bins"] if reference else (),
        ),
    }
