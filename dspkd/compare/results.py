"""From the stored predictions of the finished cells to every number of the tables. Nothing is evaluated again."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from dspkd.compare.execution import is_finished, read_failures
from dspkd.compare.latency import Bench, latency_rows
from dspkd.compare.plan import Cell, Plan, student_epochs
from dspkd.compare.statistics import Difference, Gap, gap_closed, holm, paired_difference
from dspkd.compare.stored_runs import StoredRun, most_agreed_on, read_run
from dspkd.errors import DataError, DspkdError, OutputError
from dspkd.student import StudentCard, is_student_dir
from dspkd.train.metrics import headline_metrics, lesion_draws, per_class_metrics, weighted_confusions

__all__ = ["HEADLINE", "RESULTS_SCHEMA_VERSION", "Collected", "collect"]

RESULTS_SCHEMA_VERSION = 1
REPETITIONS = 2000
HEADLINE = ("accuracy", "balanced_accuracy", "macro_f1", "macro_precision", "macro_specificity")
NOT_FINISHED = "not finished"
AGAIN = "remove the run's folder to make it again"
JUDGED_BY = "balanced_accuracy"
"""What epochs are chosen by, and in which a rare class weighs as much as a common one."""
Complexity = Callable[[str, int, int], Mapping[str, int]]
"""Architecture, classes, size -> parameters and MACs."""


@dataclass(frozen=True, slots=True)
class Collected:
    """`results` is what results.json holds; `histories` are the lines of metrics.jsonl by the cell's name."""

    results: dict[str, Any]
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Run:
    """A finished run as the tables need it."""

    card: StudentCard
    history: list[dict[str, Any]]
    matrix: np.ndarray
    """(K, K), the confusion matrix on all images."""
    metrics: dict[str, np.ndarray]
    """Each (1 + R,): on all images, then on each draw of lesions. Headline metrics, and `f1/CLASS`."""


class _Frame:
    """The images that all runs are judged on: the same for all, in the same order, with the same draws of lesions."""

    def __init__(self, run: StoredRun) -> None:
        self.images, self.truth, self.classes = run.images, run.labels, run.card.classes
        self.split_sha256 = run.split_sha256
        self.group_index, draws = lesion_draws(run.lesions, REPETITIONS)
        # Row 0 counts every lesion once: the figures themselves.
        self.weights = np.vstack([np.ones(draws.shape[1]), draws]).astype(np.float32)

    @property
    def lesion_count(self) -> int:
        return int(self.weights.shape[1])

    def judge(self, run: StoredRun) -> _Run:
        """Confusion matrix and metrics of stored predictions. Raises DataError if they are of other images."""
        index = {name: k for k, name in enumerate(self.classes)}
        if run.images != self.images or run.labels != self.truth or not index.keys() >= {*run.predicted}:
            raise DataError(f"{run.predictions.name} holds predictions of other images than the other runs")
        labels, predictions = (np.array([index[name] for name in names]) for names in (run.labels, run.predicted))
        matrices = weighted_confusions(labels, predictions, self.group_index, self.weights, len(self.classes))
        headline, f1 = headline_metrics(matrices), per_class_metrics(matrices)["f1"]
        metrics = {name: headline[name] for name in HEADLINE}
        metrics |= {f"f1/{name}": f1[:, k] for k, name in enumerate(self.classes)}
        return _Run(run.card, run.history, matrices[0], metrics)


def collect(plan: Plan, *, complexity: Complexity | None = None, benches: Sequence[Bench] = ()) -> Collected:
    """Every number of the tables, from what is finished; what is not stands in `missing` with the reason.

    A damaged folder, or a run that does not belong to the others (another split, another teacher), is such a reason and
    not the end of the tables. Raises DataError if no student is left to show.
    """
    return _Collector(plan, complexity, benches).collect()


class _Collector:
    def __init__(self, plan: Plan, complexity: Complexity | None, benches: Sequence[Bench]) -> None:
        self.plan, self.complexity, self.benches = plan, complexity, benches
        self.comparison = plan.comparison
        self.part = plan.comparison.judge
        self.missing: list[dict[str, str]] = []
        self.runs: dict[str, _Run] = {}
        self.teachers: dict[str, _Run] = {}
        self.differences: dict[tuple[Any, ...], dict[str, Difference]] = {}
        self.frame: _Frame | None = None

    def collect(self) -> Collected:
        self._read()
        self._leave_out_students_of_another_teacher()
        frame = self.frame
        if frame is None or not any(cell.method for cell in self.plan.cells if cell.name in self.runs):
            raise self._nothing_to_show()
        students = list(self.comparison.students)
        teachers: list[str | None] = [*self.comparison.teachers] or [None]
        pairs = [self._pair(student, teacher) for student in students for teacher in teachers]
        self._adjust(pairs)
        comparison, networks = self.comparison, self._networks()
        results = {
            "kind": "comparison",
            "schema_version": RESULTS_SCHEMA_VERSION,
            "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "title": comparison.title or "Methods side by side",
            "notes": comparison.notes,
            "judge": self.part,
            "epochs": comparison.epochs,
            "seeds": list(comparison.seeds),
            "size": self.plan.cells[0].config.size,
            "batch_size": self.plan.cells[0].config.batch_size,
            "classes": list(frame.classes),
            "support": [frame.truth.count(name) for name in frame.classes],
            "images": len(frame.images),
            "lesions": frame.lesion_count,
            "parts": dict(next(iter(self.runs.values())).card.data["images"]),
            "split_sha256": frame.split_sha256,
            "caution": next(iter(self.runs.values())).card.caution,
            "repetitions": REPETITIONS,
            "references": list(comparison.compared_with),
            "networks": networks,
            "latency": [latency_rows(bench, networks, self._runs_by_weights()) for bench in self.benches],
            "bench_command": self._bench_command(),
            "methods": [self._method(name) for name in comparison.methods],
            "pairs": pairs,
            "runs": [self._run_row(cell) for cell in self.plan.cells if cell.name in self.runs],
            "missing": self.missing,
        }
        return Collected(results, {name: run.history for name, run in self.runs.items()})

    # Reading --------------------------------------------------------------------------------------

    def _read(self) -> None:
        stored = self._read_cells()
        if stored:
            self.frame = _Frame(most_agreed_on(list(stored.values())))
        for cell in self.plan.cells:
            run = self._judge(cell.name, stored[cell.name], same_split=True) if cell.name in stored else None
            if run is None:
                continue
            self.runs[cell.name] = run
            if cell.method is None and cell.teacher is not None:
                self.teachers[cell.teacher] = run
        for name, spec in self.comparison.teachers.items():
            if spec.run is not None and (run := self._read_given_teacher(name)):
                self.teachers[name] = run

    def _read_cells(self) -> dict[str, StoredRun]:
        failures = read_failures(self.plan)
        stored: dict[str, StoredRun] = {}
        for cell in self.plan.cells:
            try:
                if is_finished(cell):
                    stored[cell.name] = read_run(cell.config.out, self.part)
                else:
                    self._leave_out(cell.name, failures.get(cell.name, NOT_FINISHED))
            except OutputError as error:
                # A run of other settings is whole, and its folder none to be removed.
                self._leave_out(cell.name, f"{error.message}; {error.hint}")
            except DspkdError as error:
                self._leave_out(cell.name, f"{error.message}; {AGAIN}")
        return stored

    def _read_given_teacher(self, name: str) -> _Run | None:
        run, folder = f"teacher {name}", self.plan.teacher_folders[name]
        try:
            if is_student_dir(folder):
                return self._judge(run, read_run(folder, self.part), same_split=False)
            self._leave_out(run, "there is no finished run")
        except DspkdError as error:
            self._leave_out(run, error.message)
        return None

    def _judge(self, name: str, stored: StoredRun, *, same_split: bool) -> _Run | None:
        if self.frame is None:
            return None
        if same_split and stored.split_sha256 != self.frame.split_sha256:
            self._leave_out(name, f"it was made on another split than the other runs; {AGAIN}")
            return None
        try:
            return self.frame.judge(stored)
        except DataError as error:
            self._leave_out(name, f"{error.message}; {AGAIN}" if same_split else error.message)
            return None

    def _leave_out(self, run: str, reason: str) -> None:
        self.missing.append({"run": run, "reason": reason.replace(f"{self.plan.out}/", "")})

    def _leave_out_students_of_another_teacher(self) -> None:
        for cell in self.plan.cells:
            run, teacher = self.runs.get(cell.name), self.teachers.get(cell.teacher or "")
            if run is None or cell.method is None or teacher is None:
                continue
            if run.card.teacher is None or run.card.teacher["weights_sha256"] != teacher.card.weights_sha256:
                del self.runs[cell.name]
                self._leave_out(
                    cell.name,
                    f"it was distilled from other weights than teacher {cell.teacher} has now: remove "
                    f"{cell.config.out} to make it again",
                )

    def _nothing_to_show(self) -> DataError:
        # The first in the order of execution is what the others wait for.
        told = [f"{entry['run']}: {entry['reason']}" for entry in self.missing if entry["reason"] != NOT_FINISHED]
        return DataError(
            f"{self.plan.out}: no student is finished, so there is nothing to show", hint=told[0] if told else None
        )

    # Numbers --------------------------------------------------------------------------------------

    def _cells(self, method: str, student: str, teacher: str | None) -> dict[int, Cell]:
        """The finished cells of one entry of the tables, by seed."""
        cells = {seed: self.plan.cell(method, student, teacher, seed) for seed in self.comparison.seeds}
        return {seed: cell for seed, cell in cells.items() if cell.name in self.runs}

    def _values(self, cells: Mapping[int, Cell], seeds: Sequence[int], metric: str) -> np.ndarray:
        return np.stack([self.runs[cells[seed].name].metrics[metric] for seed in seeds])

    def _pair(self, student: str, teacher: str | None) -> dict[str, Any]:
        methods = [m for m in self.comparison.methods if teacher is not None or not self.plan.has_teacher(m)]
        rows = [self._row(method, student, teacher) for method in methods]
        ablation = [
            {
                "method": row.method,
                "against": row.against,
                "difference": self._difference(row.method, row.against, student, teacher),
            }
            for row in self.comparison.ablation
            if row.method in methods and row.against in methods
        ]
        return {"student": student, "teacher": teacher, "rows": rows, "ablation": ablation}

    def _row(self, method: str, student: str, teacher: str | None) -> dict[str, Any]:
        cells = self._cells(method, student, teacher)
        seeds = list(cells)
        row: dict[str, Any] = {"method": method, "seeds": seeds, "metrics": {}, "versus": {}, "gap_closed": None}
        if not seeds:
            return row
        runs = [self.runs[cells[seed].name] for seed in seeds]
        for metric in runs[0].metrics:
            values = [float(run.metrics[metric][0]) for run in runs]
            row["metrics"][metric] = {
                "mean": float(np.mean(values)),
                "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                "values": values,
            }
        row["confusion"] = np.sum([run.matrix for run in runs], axis=0).astype(int).tolist()
        row["training_seconds"] = _mean([_training_seconds(run) for run in runs])
        for reference in self.comparison.compared_with:
            if reference != method:
                row["versus"][reference] = self._difference(method, reference, student, teacher)
        row["gap_closed"] = self._gap(method, student, teacher)
        return row

    def _difference(self, method: str, against: str, student: str, teacher: str | None) -> dict[str, Any] | None:
        """By metric, over the seeds that both have finished; None without any."""
        ours, theirs = (self._cells(name, student, teacher) for name in (method, against))
        seeds = [seed for seed in ours if seed in theirs]
        if not seeds:
            return None
        key = tuple(self._identity(name, student, teacher) for name in (method, against))
        if key not in self.differences:
            assert self.frame is not None
            count = self.frame.lesion_count
            metrics = self.runs[ours[seeds[0]].name].metrics
            self.differences[key] = {
                metric: paired_difference(self._values(ours, seeds, metric), self._values(theirs, seeds, metric), count)
                for metric in metrics
            }
        return {
            "key": key,
            "seeds": seeds,
            **{metric: _plain(difference) for metric, difference in self.differences[key].items()},
        }

    def _identity(self, method: str, student: str, teacher: str | None) -> tuple[str, str, str | None]:
        return method, student, teacher if self.plan.has_teacher(method) else None

    def _gap(self, method: str, student: str, teacher: str | None) -> dict[str, Any] | None:
        baseline = self.comparison.compared_with[0]
        if teacher not in self.teachers or method == baseline:
            return None
        ours, alone = (self._cells(name, student, teacher) for name in (method, baseline))
        seeds = [seed for seed in ours if seed in alone]
        if not seeds or self.frame is None:
            return None
        gap: Gap = gap_closed(
            self._values(ours, seeds, JUDGED_BY),
            self._values(alone, seeds, JUDGED_BY),
            self.teachers[teacher].metrics[JUDGED_BY],
            self.frame.lesion_count,
        )
        return {"value": gap.value, "interval": list(gap.interval) if gap.interval else None}

    def _adjust(self, pairs: Sequence[dict[str, Any]]) -> None:
        """Holm's adjustment of the p values of balanced accuracy, over all methods and pairs against one reference;
        a comparison that stands in the tables of several teachers counts once.
        """
        for reference in self.comparison.compared_with:
            entries = [row["versus"].get(reference) for pair in pairs for row in pair["rows"]]
            shown = [entry for entry in entries if entry and entry[JUDGED_BY]["p"] is not None]
            unique = {entry["key"]: entry[JUDGED_BY]["p"] for entry in shown}
            adjusted = dict(zip(unique, holm(list(unique.values())), strict=True))
            for entry in shown:
                entry["holm"] = {"p": adjusted[entry["key"]], "comparisons": len(unique)}
        for pair in pairs:
            differences = [d for row in pair["rows"] for d in row["versus"].values()]
            for entry in (*differences, *(row["difference"] for row in pair["ablation"])):
                if entry:
                    entry.pop("key", None)

    # Descriptions ---------------------------------------------------------------------------------

    def _networks(self) -> list[dict[str, Any]]:
        """Table 1: teachers, then students that learn alone."""
        found = []
        for name, spec in self.comparison.teachers.items():
            if run := self.teachers.get(name):
                found.append(self._network("teacher", name, spec.label, [run]))
        for name, student in self.comparison.students.items():
            cells = self._cells(self.comparison.compared_with[0], name, None)
            if cells:
                found.append(self._network("student", name, student.label, [self.runs[c.name] for c in cells.values()]))
        return found

    def _network(self, role: str, name: str, label: str, runs: Sequence[_Run]) -> dict[str, Any]:
        card = runs[0].card
        architecture = card.architecture.rpartition("/")[2]
        counted = self.complexity(card.architecture, len(card.classes), card.preprocess.size) if self.complexity else {}
        metrics: dict[str, Any] = {}
        for metric in runs[0].metrics:
            values = [float(run.metrics[metric][0]) for run in runs]
            low, high = np.percentile(np.mean([run.metrics[metric][1:] for run in runs], axis=0), [2.5, 97.5])
            metrics[metric] = {
                "mean": float(np.mean(values)),
                "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                "values": values,
                "interval": [float(low), float(high)],
            }
        return {
            "role": role,
            "name": name,
            "label": label or architecture,
            "architecture": card.architecture,
            "parameters": counted.get("parameters"),
            "macs": counted.get("macs"),
            "size": card.preprocess.size,
            "metrics": metrics,
        }

    def _runs_by_weights(self) -> dict[tuple[str, str], dict[str, str]]:
        """Names of the runs of each network, distilled ones among the students', by the hash of their weights."""
        found = {("teacher", name): {run.card.weights_sha256: name} for name, run in self.teachers.items()}
        for student in self.comparison.students:
            cells = [cell for cell in self.plan.cells if cell.student == student and cell.name in self.runs]
            found["student", student] = {self.runs[cell.name].card.weights_sha256: cell.name for cell in cells}
        return found

    def _bench_command(self) -> str:
        """What measures the time of every network, in PyTorch on this machine."""
        teachers = [
            _shown(self.plan.teacher_folders[name]) for name in self.comparison.teachers if name in self.teachers
        ]
        alone = [self._cells(self.comparison.compared_with[0], name, None) for name in self.comparison.students]
        students = [_shown(next(iter(cells.values())).config.out) for cells in alone if cells]
        first = ["--teacher", teachers[0]] if teachers else []
        out = _shown(self.plan.out / "bench.json")
        return shlex.join(["dspkd", "bench", *teachers[1:], *students, *first, "--out", out])

    def _method(self, name: str) -> dict[str, Any]:
        spec = self.comparison.methods[name]
        config = next(cell.config for cell in self.plan.cells if cell.method == name)
        return {
            "name": name,
            "label": spec.label or name,
            "source": spec.source,
            "tuned": spec.tuned,
            "own_budget": spec.budget == "own",
            "epochs": student_epochs(config),
            "stages": [stage.model_dump(mode="json", exclude_none=True) for stage in config.stages],
            "needs_teacher": self.plan.has_teacher(name),
        }

    def _run_row(self, cell: Cell) -> dict[str, Any]:
        run = self.runs[cell.name]
        return {
            "run": cell.name,
            "method": cell.method,
            "student": cell.student,
            "teacher": cell.teacher,
            "seed": cell.seed,
            "selected": run.card.metrics["selected"],
            "training_seconds": _training_seconds(run),
            "metrics": {name: float(values[0]) for name, values in run.metrics.items()},
        }


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _plain(difference: Difference) -> dict[str, Any]:
    return {
        "difference": difference.value,
        "per_seed": list(difference.per_seed),
        "lesions": list(difference.lesions),
        "lesions_and_seeds": list(difference.lesions_and_seeds) if difference.lesions_and_seeds else None,
        "p": difference.p,
    }


def _training_seconds(run: _Run) -> float | None:
    """Of all epochs without their validation; None where the run does not say."""
    images = run.card.data.get("images", {}).get("train")
    speeds = [line.get("images_per_s") for line in run.history]
    if not images or not speeds or not all(speeds):
        return None
    return float(sum(images / speed for speed in speeds))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
