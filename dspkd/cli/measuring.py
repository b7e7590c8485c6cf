"""`dspkd bench` and `dspkd report`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import typer

from dspkd.cli.common import print_json, reporting, say


def bench(
    folders: list[Path] = typer.Argument(None, help="Artifact, run or student folders."),
    teacher: Path | None = typer.Option(None, "--teacher", help="A model folder to compare with, measured in PyTorch."),
    student: Path | None = typer.Option(None, "--student", help="A run or student folder, measured in PyTorch."),
    threads: int = typer.Option(1, "--threads", help="Threads of every runtime.", min=1),
    seconds: float = typer.Option(20.0, "--seconds", help="Stop after this long (but not before --min-rounds)."),
    min_rounds: int = typer.Option(50, "--min-rounds", help="Timed calls of each subject, at least.", min=5),
    memory: bool = typer.Option(True, "--memory/--no-memory", help="Peak memory, each in a process of its own."),
    out: Path | None = typer.Option(None, "--out", help="Also write the results to this JSON file."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON, and nothing else, on stdout."),
) -> None:
    """Measure parameters, MACs, FLOPs, latency and memory, teacher beside student, interleaved in one run.

    Needs model folders: artifacts run on their own runtime, runs and students in PyTorch. To compare on the same
    runtime export the teacher too. Writes --out, if asked; prints a table with the ratios.
    """
    from dspkd_bench.bench import BenchConfig, run_bench
    from dspkd_bench.latency import StopRule

    config = BenchConfig(
        folders=[*(folders or []), *([student] if student else [])],
        teacher=teacher,
        threads=threads,
        memory=memory,
        stop=StopRule(seconds=seconds, min_rounds=min_rounds),
        command=shlex.join(["dspkd", *sys.argv[1:]]),
    )
    with reporting() as reporter:
        results = run_bench(config, reporter.progress)
    if out is not None:
        from dspkd.fileio import write_json

        write_json(out, results)
    if as_json:
        print_json(results)
        return
    from rich.console import Console

    from dspkd_bench.table import results_table

    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(results_table(results))
    if out is not None:
        say(f"next: dspkd report {out} --out report.html")


def report(
    results: list[Path] = typer.Argument(..., help="results.json of `dspkd bench`."),
    run: list[Path] = typer.Option(
        [], "--run", help="Run folders to show with curves and confusion matrix. Repeatable."
    ),
    out: Path = typer.Option(Path("report.html"), "--out", help="The page."),
) -> None:
    """Make one self-contained HTML page from results and runs. Nothing is measured here.

    Needs results.json; run folders are optional (those measured are taken from the results where they still lie there).
    Writes --out.
    """
    from dspkd_bench.report import collect, write_report

    write_report(out, collect(results, run))
    say(f"written to {out}")
