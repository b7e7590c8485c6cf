"""`dspkd compare`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dspkd.cli.common import print_json, reporting, say
from dspkd.errors import DspkdError, MissingDependencyError, UsageError

if TYPE_CHECKING:
    from dspkd.compare.latency import Bench
    from dspkd.compare.plan import Plan
    from dspkd.compare.results import Collected

__all__ = ["compare"]


def compare(
    file: Path = typer.Argument(..., help="The comparison as a TOML file; benchmarks/compare/ has some."),
    data: Path | None = typer.Option(None, "--data", help="Images; wins over data.root of the file."),
    out: Path | None = typer.Option(None, "--out", help="Folder of runs and tables. [default: runs/NAME of the file]"),
    set_: list[str] = typer.Option(
        [], "--set", help="Any key of the file, e.g. teachers.lite0.weights=FILE or epochs=5. Repeatable."
    ),
    bench: list[Path] = typer.Option(
        [], "--bench", help="results.json of dspkd bench: adds the time per inference to the tables. Repeatable."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print the commands of all cells, one a line, and stop."),
    tables_only: bool = typer.Option(False, "--tables-only", help="Make the tables of what is finished; run nothing."),
    as_json: bool = typer.Option(False, "--json", help="Print the results as JSON, and nothing else, on stdout."),
) -> None:
    """Methods x teachers x students x seeds from one file, with equal budgets, paired intervals and the paper's tables.

    Needs the file and labelled images. Writes --out: runs/ with an ordinary run folder for each cell, tables.md,
    tables.csv, runs.csv, results.json, compare.html, curves and confusion matrices. Finished cells are not repeated and
    interrupted ones go on when the command is given again; a cell that fails does not stop the others. Started twice,
    the two share the work.

    --bench adds the time per inference, with intervals, beside parameters and MACs (latency.csv, too); without it
    tables.md has the command that measures it.

    --dry-run prints commands for any scheduler; teachers come first, and what names one has to wait for it. Give
    --tables-only when they are done.
    """
    plan = _plan(file, data, out, set_)
    benches = [_read_bench(path) for path in bench]
    if dry_run:
        _print_commands(plan)
        return
    failed = {} if tables_only else _carry_out(plan)
    try:
        collected = _write(plan, benches)
    except DspkdError as error:
        if not failed:
            raise
        # Where nothing is left to show, the reason lies in what failed.
        typer.echo(f"dspkd: no tables: {error.message}", err=True)
        raise _summary_of(failed, plan) from error
    if as_json:
        print_json({"out": str(plan.out), **collected.results})
    else:
        _show(plan, collected.results)
    if failed:
        raise _summary_of(failed, plan)


def _plan(file: Path, data: Path | None, out: Path | None, overrides: list[str]) -> Plan:
    from dspkd.compare.plan import make_plan
    from dspkd.compare.spec import parse_comparison
    from dspkd.config import apply_overrides, load_toml

    values = apply_overrides(load_toml(file), overrides)
    if data is not None:
        table = values.setdefault("data", {})
        if not isinstance(table, dict):
            raise UsageError(f"{file}: data is {table!r}, expected a table", hint="write [data]")
        table["root"] = str(data)
    return make_plan(parse_comparison(values, origin=str(file)), out or Path("runs") / file.stem, origin=str(file))


def _print_commands(plan: Plan) -> None:
    from dspkd.compare.execution import prepare
    from dspkd.train.reporter import Reporter

    prepare(plan, Reporter(), pixels=False)
    for cell in plan.cells:
        say(cell.command)


def _carry_out(plan: Plan) -> dict[str, str]:
    from dspkd.compare.execution import carry_out, prepare

    try:
        with _terminated_like_interrupted(), reporting() as reporter:
            prepare(plan, reporter)
            return carry_out(plan, reporter)
    except KeyboardInterrupt:
        typer.echo("dspkd: interrupted; give the same command again to go on", err=True)
        raise typer.Exit(130) from None


def _summary_of(failed: Mapping[str, str], plan: Plan) -> DspkdError:
    return DspkdError(
        f"{len(failed)} of {len(plan.cells)} cells failed: "
        + "; ".join(f"{name}: {error}" for name, error in failed.items()),
        hint=f"logs lie in {plan.out / 'logs'}; give the command again to try them once more",
    )


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM, by which schedulers stop a job, ends the running cell too."""

    def stop(signum: int, _frame: Any) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _read_bench(path: Path) -> Bench:
    from dspkd.compare.latency import parse_bench
    from dspkd_bench.report import read_results

    return parse_bench(read_results(path), origin=str(path))


def _write(plan: Plan, benches: Sequence[Bench]) -> Collected:
    from dspkd.compare.execution import write_comparison
    from dspkd.compare.output import write_tables
    from dspkd.compare.results import collect
    from dspkd.fileio import write_text
    from dspkd_bench.compare_page import render_comparison

    collected = collect(plan, complexity=_complexity, benches=benches)
    write_comparison(plan)
    write_tables(plan.out, collected)
    try:
        write_text(plan.out / "compare.html", render_comparison(collected.results, collected.histories))
    except MissingDependencyError as error:
        typer.echo(f"dspkd: compare.html was not written: {error}", err=True)
    return collected


def _complexity(architecture: str, num_classes: int, size: int) -> Mapping[str, int]:
    from dspkd.models import Architecture
    from dspkd_bench.complexity import count

    counted = count(Architecture(architecture).build(num_classes).eval(), size)
    return {"parameters": counted.parameters, "macs": counted.macs}


def _show(plan: Plan, results: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from dspkd.compare.tables import summary_tables

    console = Console(width=None if sys.stdout.isatty() else 180)
    for table in summary_tables(results):
        shown = Table(title=table.title, title_justify="left")
        for k, column in enumerate(table.columns):
            shown.add_column(column, justify="left" if k in table.text_columns else "right")
        for row in table.rows:
            shown.add_row(*(escape(str(entry)) for entry in row))
        console.print(shown)
    if results["missing"]:
        say(f"{len(results['missing'])} runs are not in the tables; {plan.out / 'tables.md'} says why")
    say(f"written to {plan.out}: tables.md, compare.html")
