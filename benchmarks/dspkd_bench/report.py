"""One self-contained HTML page from measured results and finished runs. Nothing is measured here.

`collect` reads files, `render_report` turns what it read into text, `write_report` stores it. A caller that has
everything in hand (the demo) fills a `ReportContent` itself. The page asks for nothing from any host: style and
pictures are inside, and its content security policy forbids the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dspkd.errors import DataError, MissingDependencyError
from dspkd.fileio import write_text
from dspkd.student import is_student_dir, load_card
from dspkd_bench.bench import RESULTS_SCHEMA_VERSION

__all__ = ["ReportContent", "RunSummary", "collect", "read_results", "render_report", "summarise_run", "write_report"]


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One trained network."""

    name: str
    role: str
    """teacher, baseline (a student trained alone) or student (distilled)."""
    card: dict[str, Any]
    """The content of its student.json."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """The lines of metrics.jsonl."""

    @property
    def part(self) -> str:
        """The part of the data that `metrics` belong to: test where it was used, else val."""
        return "test" if "test" in self.card["metrics"] else "val"

    @property
    def metrics(self) -> dict[str, Any]:
        """As `dspkd.train.metrics.summarise` gives them; empty if the network was never evaluated."""
        metrics: dict[str, Any] = self.card["metrics"].get(self.part, {})
        return metrics


@dataclass(frozen=True, slots=True)
class ReportContent:
    """Everything on the page; what is empty is left out."""

    results: Sequence[dict[str, Any]] = ()
    """The content of results.json, one for each bench."""
    runs: Sequence[RunSummary] = ()
    title: str = "Teacher and student, side by side"
    notes: Sequence[str] = ()
    """Paragraphs under the title: what was done, what must not be read into it. What distillation changed, the page
    says itself, from the numbers.
    """
    strip_png: bytes | None = None
    """Images with the HF mask over them, as one PNG picture."""
    strip_caption: str = ""
    commands: str = ""
    """What to type, one command a line. The command of each bench stands beside its environment."""
    created: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))


def read_results(path: Path) -> dict[str, Any]:
    """The content of a results.json. Raises DataError if it is missing, no JSON, of another kind, or of a newer
    schema.
    """
    hint = "give the file that `dspkd bench --out FILE` wrote"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", hint=hint) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}", hint=hint) from error
    if isinstance(value, dict) and value.get("kind") == "comparison":
        page = path.parent / "compare.html"
        made = f"its page is {page}" if page.is_file() else "its page is made with `dspkd compare FILE --tables-only`"
        raise DataError(f"{path} is of `dspkd compare`, and holds no results of a bench", hint=made)
    if not isinstance(value, dict) or value.get("kind") != "bench-results":
        raise DataError(f"{path} holds no results of a bench", hint=hint)
    version = value.get("schema_version")
    if not isinstance(version, int) or version > RESULTS_SCHEMA_VERSION:
        raise DataError(
            f"{path} has schema version {version!r}; this dspkd reads up to {RESULTS_SCHEMA_VERSION}",
            hint="upgrade dspkd",
        )
    missing = [key for key in ("subjects", "ratios", "environment", "settings") if key not in value]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}: the file is not complete", hint="measure again")
    return value


def summarise_run(folder: Path, name: str | None = None, role: str | None = None) -> RunSummary:
    """A finished run's card and curves; its weights are not read. Raises VerificationError for a card that was
    edited.
    """
    card = load_card(folder).model_dump(mode="json")
    lines = folder / "metrics.jsonl"
    try:
        history = (
            [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()] if lines.is_file() else []
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"{lines} cannot be read: {error}", hint="remove it; the report then has no curves of this run"
        ) from error
    return RunSummary(name or folder.resolve().name, role or card["role"], card, history)


def assign_teachers(runs: Iterable[RunSummary], teacher_sha256: Iterable[str] = ()) -> list[RunSummary]:
    """Name as the teacher whatever another run was distilled from, or a bench compared with; its own card cannot
    know it.
    """
    runs = list(runs)
    teachers = {run.card["teacher"]["weights_sha256"] for run in runs if run.card.get("teacher")} | set(teacher_sha256)
    return [replace(run, role="teacher") if run.card["weights_sha256"] in teachers else run for run in runs]


def collect(results: Sequence[Path], runs: Sequence[Path] = ()) -> ReportContent:
    """Results, `runs`, and those PyTorch folders that were measured, where they still lie there."""
    measured = [read_results(path) for path in results]
    subjects = [subject for result in measured for subject in result["subjects"]]
    folders = [
        *runs,
        *(Path(s["path"]) for s in subjects if s["target"] == "pytorch" and is_student_dir(Path(s["path"]))),
    ]
    unique = {folder.resolve(): folder for folder in folders}
    teachers = {s["weights_sha256"] for s in subjects if s["role"] == "teacher"}
    return ReportContent(
        results=measured,
        runs=assign_teachers([summarise_run(folder) for folder in unique.values()], teachers),
    )


def render_report(content: ReportContent) -> str:
    """The page as text. Every value is escaped. Raises MissingDependencyError without Jinja."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ModuleNotFoundError as error:
        raise MissingDependencyError("the report page needs jinja2", hint="pip install 'dspkd[report]'") from error
    from dspkd_bench.report_numbers import FILTERS
    from dspkd_bench.report_view import view

    environment = Environment(
        loader=PackageLoader("dspkd_bench"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    return environment.get_template("report.html.j2").render(view(content))


def write_report(out: Path, content: ReportContent) -> None:
    """`render_report` into the file `out`. Raises OutputError if it cannot be written."""
    write_text(out, render_report(content))
