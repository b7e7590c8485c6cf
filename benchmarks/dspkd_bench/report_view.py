"""What the report shows, computed from what was measured: rows, ratios, charts. The template only lays it out."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dspkd_bench.charts import Point, Series, line_chart, scatter_chart

if TYPE_CHECKING:
    from dspkd_bench.report import ReportContent, RunSummary

__all__ = ["FILTERS", "ROLES", "view"]

ROLES = {"teacher": "Teacher", "baseline": "Student alone", "student": "Student distilled"}
SCORES = (("accuracy", "Accuracy"), ("balanced_accuracy", "Balanced accuracy"), ("macro_f1", "Macro-F1"))
RUNTIMES = {"pytorch": "PyTorch", "onnx": "ONNX Runtime", "executorch": "ExecuTorch"}
# DSP-KD, Tables 1 and 6: Res2Net101 against ShuffleNetV2 x1.0 at 224 px.
PAPER_RATIOS = {"parameters": 34.2, "macs": 54.7, "latency": 12.9}
_ORDER = list(ROLES)


def view(content: ReportContent) -> dict[str, Any]:
    """The template's variables."""
    runs = sorted((run for run in content.runs if run.metrics), key=lambda r: _ORDER.index(r.role))
    groups = _groups(runs)
    detailed = [_run(run) for run in runs if run.metrics.get("per_class")]
    benches = [_bench(result) for result in content.results]
    return {
        "title": content.title,
        "created": content.created,
        "notes": list(content.notes),
        "tiles": _tiles(content.results, groups),
        "findings": _findings(groups),
        "scores": SCORES,
        "groups": groups,
        "part": _parts(runs),
        "curves": _curves(runs),
        "runs": detailed,
        "comparison": _comparison(detailed),
        "benches": benches,
        "certified": any(bench["certificates"] for bench in benches),
        "strip": base64.b64encode(content.strip_png).decode() if content.strip_png else None,
        "strip_caption": content.strip_caption,
        "commands": content.commands,
        "roles": ROLES,
        "paper": PAPER_RATIOS,
    }


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
    teacher, alone, distilled = (_first(groups, role) for role in _ORDER)
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
            f"({_percent(ours['mean'])} and {_percent(theirs['mean'])} %)"
        )
        found.append(f"{text}. {_certainty(ours, theirs, len(distilled['members']), len(alone['members']))}".strip())
    if teacher and distilled:
        gap = teacher["scores"]["balanced_accuracy"]["mean"] - distilled["scores"]["balanced_accuracy"]["mean"]
        found.append(
            f"The distilled student stands {100 * abs(gap):.1f} points {'below' if gap > 0 else 'above'} its teacher "
            f"({_percent(teacher['scores']['balanced_accuracy']['mean'])} %)."
        )
    return [_unbroken(sentence) for sentence in found]


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


# Headline -----------------------------------------------------------------------------------------


def _headline_ratio(
    results: Sequence[Mapping[str, Any]],
) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]] | None:
    """The fastest distilled student that was measured on the same runtime as the teacher: (ratio, student, teacher)."""
    choices = []
    for number, result in enumerate(results):
        subjects = {s["name"]: s for s in result["subjects"]}
        for ratio in result["ratios"]:
            student = subjects[ratio["subject"]]
            rank = (number, student["role"] != "student", not ratio["same_runtime"], student["latency"]["p50_ms"])
            choices.append((rank, (ratio, student, subjects[ratio["teacher"]])))
    return min(choices, key=lambda c: c[0])[1] if choices else None


def _tiles(results: Sequence[Mapping[str, Any]], groups: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    tiles = []
    found = _headline_ratio(results)
    if found:
        ratio, student, teacher = found
        own, theirs = student["complexity"], teacher["complexity"]
        low, high = ratio["latency"]["interval"]
        where = RUNTIMES.get(student["target"], student["target"])
        tiles = [
            _tile(
                _times(ratio["parameters"]),
                "fewer parameters",
                f"{_count(theirs['parameters'])} → {_count(own['parameters'])}",
            ),
            _tile(
                _times(ratio["macs"]), "fewer multiply-adds", f"{_count(theirs['macs'])} → {_count(own['macs'])} MACs"
            ),
        ]
        # Against a teacher on another runtime the ratio would praise the runtime.
        if ratio["same_runtime"]:
            tiles.append(
                _tile(
                    _times(ratio["latency"]["ratio"]),
                    "faster",
                    f"{_ms(teacher['latency']['p50_ms'])} → {_ms(student['latency']['p50_ms'])} ms in {where}, "
                    f"95 % interval {_times(low)} – {_times(high)}",
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
                f"{_percent(theirs)} → {_percent(ours)} % on the {part} images",
            )
        )
    return tiles


def _tile(value: str, label: str, note: str) -> dict[str, str]:
    return {"value": value, "label": label, "note": _unbroken(note)}


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


# Bench --------------------------------------------------------------------------------------------


def _bench(result: Mapping[str, Any]) -> dict[str, Any]:
    subjects = sorted(result["subjects"], key=lambda s: (_ORDER.index(s["role"]), -s["latency"]["p50_ms"]))
    ratios = {r["subject"]: r for r in result["ratios"]}
    rows = [
        {
            **s,
            "short": _short(s),
            "ratio": ratios.get(s["name"]),
            "runtime_title": RUNTIMES.get(s["target"], s["target"]),
        }
        for s in subjects
    ]
    points = [_point(row) for row in rows if row["validation"]]
    return {
        "rows": rows,
        "roles": [role for role in _ORDER if any(s["role"] == role for s in subjects)],
        "scatter": scatter_chart(
            points,
            title="Balanced accuracy over median latency; the area of a circle is the size of the file",
            x_label="median latency in ms, batch 1 (logarithmic)",
            y_label="balanced accuracy on the validation images, %",
        ),
        "sizes": _from_to([s["file_bytes"] / 1e6 for s in subjects]),
        "networks": list({s["weights_sha256"]: {**s, "architecture": _short(s)} for s in subjects}.values()),
        "certificates": [row for row in rows if row["certificate"]],
        "settings": result["settings"],
        "place": (result.get("device") or {}).get("url", "local"),
        "verdict": _verdict(result),
        "failed": result.get("failed") or [],
        "has_cold": any(s.get("load_ms") is not None for s in subjects),
        "environment": _environment(result),
        "command": result.get("command", ""),
        "has_memory": any(s["memory"] for s in subjects),
    }


def _verdict(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Whether the run may be believed, in words; None for results from before there were verdicts."""
    said = {
        "valid": "Valid run.",
        "semi-valid": "Semi-valid run: read this first.",
        "invalid": "Invalid run: do not quote these numbers.",
    }
    validity = result.get("validity")
    return {"title": said[validity["verdict"]], "reasons": validity["reasons"]} if validity else None


def _point(row: Mapping[str, Any]) -> Point:
    latency_ms, score = row["latency"]["p50_ms"], row["validation"]["balanced_accuracy"]
    return Point(
        label=f"{row['runtime_title']} {row['precision']}",
        role=row["role"],
        x=latency_ms,
        y=100 * score,
        weight=row["file_bytes"],
        detail=f"{row['name']}, {_ms(latency_ms)} ms, {row['file_bytes'] / 1e6:.1f} MB, {_percent(score)} %",
    )


def _short(subject: Mapping[str, Any]) -> str:
    return str(subject["architecture"]).rpartition("/")[2]


def _from_to(megabytes: Sequence[float]) -> str:
    texts = [f"{value:.1f}" for value in (min(megabytes), max(megabytes))]
    return f"{texts[0]} MB" if texts[0] == texts[1] else f"{texts[0]} to {texts[1]} MB"


def _environment(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    environment, settings = result["environment"], result["settings"]
    packages = ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items() if version)
    load = [environment.get("load_average_1min"), environment.get("load_average_1min_after")]
    rows = [
        ("Measured", result.get("created")),
        ("Processor", environment.get("cpu")),
        ("Cores", environment.get("cores")),
        ("Threads", environment.get("threads")),
        ("Frequency governor", environment.get("governor")),
        ("Load average (1 min) before, after", " and ".join("not known" if v is None else f"{v:.2f}" for v in load)),
        ("System", f"{environment.get('os')}, {environment.get('machine')}"),
        ("Python", environment.get("python")),
        ("Packages", packages),
        ("Input", f"{settings.get('input')}, batch {settings.get('batch')}"),
    ]
    return [(name, "not known" if value in (None, "") else str(value)) for name, value in rows]


# Numbers ------------------------------------------------------------------------------------------


def _times(value: float) -> str:
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f}×"


def _unbroken(text: str) -> str:
    """A number stays on the line of its percent sign."""
    return text.replace(" %", "\u00a0%")


def _percent(value: float) -> str:
    """0.5937 -> 59.4; the unit stands in the heading."""
    return f"{100 * value:.1f}"


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _count(value: float) -> str:
    """1262000 -> 1.262 M."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3f} {unit}" if value < 100 * factor else f"{value / factor:.1f} {unit}"
    return f"{value:.0f}"


def _tiny(value: float) -> str:
    """2.4e-06 -> 2.4·10⁻⁶."""
    if value == 0:
        return "0"
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits}·10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def _rest(name: str, role: str) -> str:
    """What a run's name says beyond its role, which stands before it: "teacher, resnet18" -> "resnet18"."""
    title = ROLES[role].lower()
    return name[len(title) :].lstrip(" ,:-") if name.lower().startswith(title) else name


FILTERS: dict[str, Callable[..., str]] = {
    "score": _percent,
    "rest": _rest,
    "times": _times,
    "ms": _ms,
    "count": _count,
    "mb": lambda value: f"{value / 1e6:.2f}",
    "tiny": _tiny,
    "percent": lambda value: f"{100 * value:.2f} %",
}
