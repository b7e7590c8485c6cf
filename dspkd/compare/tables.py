"""The numbers of a comparison as the paper's tables: one description, from which Markdown and the page are made."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dspkd.compare.results import HEADLINE, JUDGED_BY

__all__ = ["Entry", "Table", "comparison_tables", "how_to_read", "summary_tables"]

TITLES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro-F1",
    "macro_precision": "Precision",
    "macro_specificity": "Specificity",
}
OWN_BUDGET = "†"


@dataclass(frozen=True, slots=True)
class Entry:
    text: str
    spread: str = ""
    """What stands beside it."""
    below: str = ""
    """What stands under it, where there is room for that: an interval, a role."""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.text, self.spread, self.below)))


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Entry]]
    """The first entry of a row is its heading."""
    notes: Sequence[str] = ()
    text_columns: frozenset[int] = frozenset({0})
    """Those that hold words."""


NOTHING = Entry("–")


def comparison_tables(results: Mapping[str, Any]) -> list[Table]:
    """Everything that `results` (see `dspkd.compare.results.collect`) holds; what was not made is left out."""
    tables = [_networks(results), *(_latency(entry) for entry in results["latency"])]
    if len(results["methods"]) > 1:
        for student in _students(results):
            tables += [_by_teacher(results, student, metric) for metric in ("accuracy", "balanced_accuracy")]
        for pair in results["pairs"]:
            tables += [_differences(results, pair), _metrics(results, pair), _classes(results, pair)]
            if any(row["difference"] for row in pair["ablation"]):
                tables.append(_ablation(results, pair))
    tables.append(_methods(results))
    if results["missing"]:
        tables.append(_missing(results))
    return tables


def how_to_read(results: Mapping[str, Any]) -> list[str]:
    """What the numbers are, in sentences."""
    part = {"test": "test", "val": "validation"}[results["judge"]]
    chosen = " They also chose the epoch of each run, so all figures flatter." if results["judge"] == "val" else ""
    seeds = len(results["seeds"])
    parts = results["parts"]
    sentences = [
        f"{results['images']} {part} images of {results['lesions']} lesions, {parts['train']} to learn from, "
        f"{results['size']} px.{chosen} Every student was updated for {results['epochs']} epochs in batches of "
        f"{results['batch_size']}, whatever its method, from the same start for each of {_count(seeds, 'seed')}.",
        "Percent, mean ± standard deviation over the seeds. Differences are in points, averaged over the seeds that "
        "both methods have, each pair on the same images.",
        "Over lesions: 95 % of the bootstrap draws of lesions, for these very networks. Over lesions and seeds: "
        "Student's 95 % interval with the variance between the seeds added; it answers whether other seeds would show "
        "the difference too. Neither covers another split, another teacher or another schedule.",
    ]
    if any(method["own_budget"] for method in results["methods"]):
        sentences.append(f"{OWN_BUDGET} trained for another number of epochs than the others: a control.")
    if results["networks"] and any(pair["teacher"] for pair in results["pairs"]):
        sentences.append(
            "Gap closed: (method - undistilled) / (teacher - undistilled) in balanced accuracy, with Fieller's 95 % "
            "interval over lesions and seeds; without an interval where the teacher is not surely ahead."
        )
    return sentences


def summary_tables(results: Mapping[str, Any]) -> list[Table]:
    """What fits a terminal: for each pair of networks balanced accuracy, its differences, and the gap closed."""
    return [_summary(results, pair) for pair in results["pairs"]]


def _summary(results: Mapping[str, Any], pair: Mapping[str, Any]) -> Table:
    references = [r for r in results["references"] if any(row["method"] == r for row in pair["rows"])]
    rows = []
    for row in pair["rows"]:
        line = [_name(_method(results, row["method"])), _mean(row["metrics"].get(JUDGED_BY))]
        for reference in references:
            difference, lesions, both, _ = _difference_entries(row["versus"].get(reference))
            line.append(Entry(difference.text, (lesions if both == NOTHING else both).text.strip("–")))
        rows.append([*line, _gap(row["gap_closed"])])
    return Table(
        _pair_title(results, pair),
        ["Method", "Balanced accuracy", *(f"minus {_label(results, r)}" for r in references), "Gap closed"],
        rows,
    )


# The tables ---------------------------------------------------------------------------------------


def _networks(results: Mapping[str, Any]) -> Table:
    rows = []
    for network in results["networks"]:
        scores = [_mean(network["metrics"][metric]) for metric in HEADLINE]
        low, high = network["metrics"][JUDGED_BY]["interval"]
        scores[1] = Entry(scores[1].text, scores[1].spread, f"[{_percent(low)}, {_percent(high)}]")
        role = "teacher" if network["role"] == "teacher" else "student alone"
        rows.append(
            [
                Entry(network["label"], below=role),
                _million(network["parameters"]),
                _million(network["macs"]),
                *scores,
            ]
        )
    return Table(
        "Networks (Table 1)",
        ["Network", "Parameters, M", f"MACs at {results['size']} px, M", *(TITLES[metric] for metric in HEADLINE)],
        rows,
        [
            "A distilled student has the parameters and MACs of the same student alone.",
            *([] if results["latency"] else [_how_to_measure_latency(results)]),
        ],
    )


def _how_to_measure_latency(results: Mapping[str, Any]) -> str:
    command = results["bench_command"]
    return (
        f"Time per inference (Table 6): {command}, then this comparison once more with --tables-only and --bench "
        f"{shlex.quote(shlex.split(command)[-1])}."
    )


def _latency(entry: Mapping[str, Any]) -> Table:
    rows = []
    for row in entry["rows"]:
        ratio = row["teacher_over_student"]
        weights = f"its weights ({row['run']})" if row["matched_by"] == "weights" else "its architecture, other weights"
        rows.append(
            [
                Entry(row["label"], below="teacher" if row["role"] == "teacher" else "student"),
                _million(row["parameters"]),
                _million(row["macs"]),
                Entry(row["runtime"]),
                Entry(f"{row['p50_ms']:.2f}", below="[{:.2f}, {:.2f}]".format(*row["p50_interval_ms"])),
                Entry(f"{row['p90_ms']:.2f}"),
                _times_faster(ratio) if ratio else NOTHING,
                Entry(weights if row["verdict"] == "valid" else f"{weights}; {row['verdict']}"),
            ]
        )
    doubts = [f"{row['subject']} is {row['verdict']}: {reason}." for row in entry["rows"] for reason in row["reasons"]]
    foreign = entry["of_other_networks"]
    ratios = [row["teacher_over_student"] for row in entry["rows"] if row["teacher_over_student"]]
    notes = [
        f"{entry['device'] or 'unknown processor'}, {_count(entry['threads'], 'thread')}, batch 1, {entry['created']}; "
        "median with its 95 % interval over the calls of one interleaved run. A distilled student is as fast as the "
        "same student alone.",
        *([f"Measured with: {entry['command']}"] if entry["command"] else []),
        *(["* on different runtimes, so the runtimes are in it too."] if not all(map(_same_runtime, ratios)) else []),
        *([f"Invalid, the run broke off: {entry['interrupted']}."] if entry["interrupted"] else []),
        *dict.fromkeys(doubts),
        *([f"In the file, but no network of this comparison: {', '.join(foreign)}."] if foreign else []),
    ]
    sizes = sorted({row["size"] for row in entry["rows"]})
    macs = f"MACs at {', '.join(map(str, sizes))} px, M" if sizes else "MACs, M"
    columns = [
        "Network",
        "Parameters, M",
        macs,
        "Runtime",
        "Median, ms",
        "p90, ms",
        "Teacher / student",
        "Measured with",
    ]
    return Table("Time per inference (Table 6)", columns, rows, notes, frozenset({0, 3, 7}))


def _times_faster(ratio: Mapping[str, Any]) -> Entry:
    low, high = ratio["latency"]["interval"]
    mark = "" if _same_runtime(ratio) else " *"
    return Entry(f"{ratio['latency']['ratio']:.1f}x{mark}", below=f"[{low:.1f}, {high:.1f}]")


def _same_runtime(ratio: Mapping[str, Any]) -> bool:
    return bool(ratio["same_runtime"])


def _by_teacher(results: Mapping[str, Any], student: str, metric: str) -> Table:
    """Tables 2 and 3: methods down, teachers across."""
    pairs = [pair for pair in results["pairs"] if pair["student"] == student]
    teachers = {n["name"]: n for n in results["networks"] if n["role"] == "teacher"}
    rows = []
    if teachers:
        own = [_mean(teachers[p["teacher"]]["metrics"][metric]) if p["teacher"] in teachers else NOTHING for p in pairs]
        rows.append([Entry("Teacher itself"), NOTHING, *own])
    for method in results["methods"]:
        found = [_row(pair, method["name"]) for pair in pairs]
        rows.append(
            [
                _name(method),
                Entry(method["source"] or "–"),
                *(_mean(row["metrics"][metric]) if row and row["metrics"] else NOTHING for row in found),
            ]
        )
    names = [teachers[p["teacher"]]["label"] if p["teacher"] in teachers else p["teacher"] or "alone" for p in pairs]
    return Table(
        f"{TITLES[metric]}, student {_student_label(results, student)} (Table 2)",
        ["Method", "Knowledge source", *names],
        rows,
        text_columns=frozenset({0, 1}),
    )


def _differences(results: Mapping[str, Any], pair: Mapping[str, Any]) -> Table:
    references = [r for r in results["references"] if any(row["method"] == r for row in pair["rows"])]
    with_gap = any(row["gap_closed"] for row in pair["rows"])
    columns = ["Method", "Balanced accuracy"]
    for reference in references:
        columns += [f"minus {_label(results, reference)}", "over lesions", "over lesions and seeds", "Holm's p"]
    rows = []
    for row in pair["rows"]:
        line = [_name(_method(results, row["method"])), _mean(row["metrics"].get(JUDGED_BY))]
        for reference in references:
            line += _difference_entries(row["versus"].get(reference))
        if with_gap:
            line.append(_gap(row["gap_closed"]))
        rows.append(line)
    return Table(
        f"Balanced accuracy against the references, {_pair_title(results, pair)}",
        [*columns, *(["Gap closed"] if with_gap else [])],
        rows,
        _holm_notes(results),
    )


def _difference_entries(entry: Mapping[str, Any] | None) -> list[Entry]:
    if not entry:
        return [NOTHING] * 4
    own = entry[JUDGED_BY]
    return [
        Entry(_points(own["difference"])),
        Entry(_interval(own["lesions"])),
        Entry(_interval(own["lesions_and_seeds"])),
        Entry(_p_value(entry["holm"]["p"])) if "holm" in entry else NOTHING,
    ]


def _holm_notes(results: Mapping[str, Any]) -> list[str]:
    entries = [row["versus"] for pair in results["pairs"] for row in pair["rows"]]
    counts = {
        reference: next((v[reference]["holm"]["comparisons"] for v in entries if "holm" in (v.get(reference) or {})), 0)
        for reference in results["references"]
    }
    notes = [
        f"{_count(count, 'comparison')} with {_label(results, reference)} in all tables together; Holm's p is adjusted "
        "for that number."
        for reference, count in counts.items()
        if count
    ]
    if not any(counts.values()):
        notes.append("One seed: nothing is known of how far another seed would differ, so there is no p value.")
    return notes


def _metrics(results: Mapping[str, Any], pair: Mapping[str, Any]) -> Table:
    baseline = results["references"][0]
    rows = []
    for row in pair["rows"]:
        versus = row["versus"].get(baseline)
        entries = []
        for metric in HEADLINE:
            entry = _mean(row["metrics"].get(metric))
            if versus:
                own = versus[metric]
                interval = own["lesions_and_seeds"] or own["lesions"]
                difference = f"({_points(own['difference'])} {_interval(interval)})"
                entry = Entry(entry.text, entry.spread, difference)
            entries.append(entry)
        rows.append([_name(_method(results, row["method"])), *entries])
    return Table(
        f"All metrics, {_pair_title(results, pair)}",
        ["Method", *(TITLES[metric] for metric in HEADLINE)],
        rows,
        [
            f"In parentheses: minus {_label(results, baseline)}, 95 % over lesions and seeds (over lesions with one "
            "seed). Precision, specificity and F1 are means over the classes."
        ],
    )


def _classes(results: Mapping[str, Any], pair: Mapping[str, Any]) -> Table:
    """Tables 4 and 5."""
    columns = [f"{name} ({n})" for name, n in zip(results["classes"], results["support"], strict=True)]
    keys = [*(f"f1/{name}" for name in results["classes"]), "macro_f1"]
    rows = [
        [_name(_method(results, row["method"])), *(_narrow(_mean(row["metrics"].get(key))) for key in keys)]
        for row in pair["rows"]
    ]
    return Table(
        f"F1 of each class, {_pair_title(results, pair)} (Table 4)",
        ["Method", *columns, "Mean"],
        rows,
        ["In parentheses: images of the class. Differences with intervals for each class stand in tables.csv."],
    )


def _ablation(results: Mapping[str, Any], pair: Mapping[str, Any]) -> Table:
    scores = {row["method"]: row["metrics"].get(JUDGED_BY) for row in pair["rows"]}
    rows = []
    for row in pair["ablation"]:
        entry = row["difference"]
        line = [_name(_method(results, row["method"])), _mean(scores[row["method"]])]
        line += [Entry(_label(results, row["against"])), *_difference_entries(entry)[:3]]
        rows.append(line)
    return Table(
        f"Ablation and controls, balanced accuracy, {_pair_title(results, pair)} (Table 7)",
        ["Method", "Balanced accuracy", "Compared with", "Difference", "over lesions", "over lesions and seeds"],
        rows,
        text_columns=frozenset({0, 2}),
    )


def _methods(results: Mapping[str, Any]) -> Table:
    seconds: dict[str, list[float]] = {}
    for run in results["runs"]:
        if run["method"] and run["training_seconds"]:
            seconds.setdefault(run["method"], []).append(run["training_seconds"])
    rows = []
    for method in results["methods"]:
        own = seconds.get(method["name"])
        rows.append(
            [
                _name(method),
                Entry(" → ".join(f"{stage['method']} {stage['epochs']}" for stage in method["stages"])),
                Entry("; ".join(map(_settings, method["stages"]))),
                Entry(method["tuned"] or "not said"),
                Entry(f"{sum(own) / len(own) / 60:.1f}") if own else NOTHING,
            ]
        )
    return Table(
        "Methods, and what was tuned for each",
        ["Method", "Stages and epochs", "Settings", "Tuned, and on what", "Training, min per run"],
        rows,
        ["Training time is that of the epochs alone, with whatever else ran on the machine: indicative."],
        frozenset({0, 1, 2, 3}),
    )


def _settings(stage: Mapping[str, Any]) -> str:
    """Those that the file gives, after the peak learning rate; all others are the method's defaults."""
    given = {"lr": stage["optimizer"]["lr"], **stage["settings"]}
    return ", ".join(f"{key} {value}" for key, value in given.items())


def _missing(results: Mapping[str, Any]) -> Table:
    rows = [[Entry(entry["run"]), Entry(entry["reason"])] for entry in results["missing"]]
    return Table("Not in the tables", ["Run", "Why"], rows, text_columns=frozenset({0, 1}))


# Looking up and writing numbers -------------------------------------------------------------------


def _students(results: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(pair["student"] for pair in results["pairs"]))


def _method(results: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next(method for method in results["methods"] if method["name"] == name)


def _row(pair: Mapping[str, Any], method: str) -> Mapping[str, Any] | None:
    return next((row for row in pair["rows"] if row["method"] == method), None)


def _label(results: Mapping[str, Any], method: str) -> str:
    return str(_method(results, method)["label"])


def _name(method: Mapping[str, Any]) -> Entry:
    return Entry(f"{method['label']} {OWN_BUDGET}" if method["own_budget"] else method["label"])


def _student_label(results: Mapping[str, Any], student: str) -> str:
    networks = results["networks"]
    return next((n["label"] for n in networks if n["role"] == "student" and n["name"] == student), student)


def _pair_title(results: Mapping[str, Any], pair: Mapping[str, Any]) -> str:
    student = _student_label(results, pair["student"])
    if pair["teacher"] is None:
        return student
    networks = results["networks"]
    teacher = next((n["label"] for n in networks if (n["role"], n["name"]) == ("teacher", pair["teacher"])), None)
    return f"{teacher or pair['teacher']} to {student}"


def _mean(metric: Mapping[str, Any] | None) -> Entry:
    if metric is None:
        return NOTHING
    return Entry(_percent(metric["mean"]), f"± {_percent(metric['sd'])}" if metric["sd"] is not None else "")


def _narrow(entry: Entry) -> Entry:
    return Entry(entry.text, below=entry.spread)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _interval(pair: Sequence[float] | None) -> str:
    return f"[{_points(pair[0])}, {_points(pair[1])}]" if pair else "–"


def _gap(gap: Mapping[str, Any] | None) -> Entry:
    if gap is None:
        return NOTHING
    if gap["value"] is None:
        return Entry("no gap")
    interval = f"[{100 * gap['interval'][0]:.0f}, {100 * gap['interval'][1]:.0f}] %" if gap["interval"] else ""
    return Entry(f"{100 * gap['value']:.0f} %", below=interval)


def _million(value: float | None) -> Entry:
    return NOTHING if value is None else Entry(f"{value / 1e6:.3f}" if value < 1e8 else f"{value / 1e6:.1f}")


def _p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
