"""`dspkd bench` and `dspkd report`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from dspkd.cli.common import print_json, reporting, say
from dspkd.errors import DeviceError, GateError, InconclusiveError, UsageError


def bench(
    folders: list[Path] = typer.Argument(None, help="Artifact, run or student folders."),
    teacher: Path | None = typer.Option(None, "--teacher", help="A model folder to compare with, measured in PyTorch."),
    student: Path | None = typer.Option(None, "--student", help="A run or student folder, measured in PyTorch."),
    device: str = typer.Option(
        "local", "--device", help="local, ssh://[user@]host[:port] or adb:[SERIAL]; a device runs artifacts only."
    ),
    threads: int = typer.Option(1, "--threads", help="Threads of every runtime.", min=1),
    seconds: float = typer.Option(20.0, "--seconds", help="Stop after this long (but not before --min-rounds)."),
    min_rounds: int = typer.Option(50, "--min-rounds", help="Timed calls of each subject, at least.", min=5),
    max_rounds: int | None = typer.Option(
        None, "--max-rounds", help="And at most, however long that takes. [default: no limit]", min=5
    ),
    precision: float | None = typer.Option(
        None, "--precision", help="Stop early once p90 is known to this fraction, e.g. 0.05.", min=0.001, max=1.0
    ),
    sustained: float = typer.Option(
        0.0,
        "--sustained",
        help="Then run each subject alone for so many seconds, after a pause: burst, sustained, energy.",
        min=0.0,
    ),
    peers: str | None = typer.Option(
        None,
        "--peers",
        help="Stock exports of the same networks beside them: all, or some of pytorch, torch-compile, onnxruntime, "
        "openvino, ncnn, litert, executorch, with commas.",
    ),
    batches: str = typer.Option("1", "--batches", help="Pictures in a call, e.g. 1,8,32; 1 is always measured."),
    cores: str | None = typer.Option(None, "--cores", help="Cores that may be used, e.g. 0,1 or 0-3."),
    providers: str = typer.Option(
        "cpu", "--providers", help="ONNX Runtime's: out of cpu,cuda,tensorrt; each is measured."
    ),
    memory: bool = typer.Option(True, "--memory/--no-memory", help="Peak memory, each in a process of its own."),
    against: Path | None = typer.Option(
        None, "--against", help="results.json to compare with: exit code 3 if slower, 6 if it cannot be told."
    ),
    max_latency_regression: str = typer.Option(
        "5%", "--max-latency-regression", help="How much slower than --against is still accepted."
    ),
    out: Path | None = typer.Option(None, "--out", help="Also write the results to this JSON file."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON, and nothing else, on stdout."),
) -> None:
    """Measure parameters, MACs, FLOPs, latency and memory, teacher beside student, interleaved in one run.

    Needs model folders: artifacts run on their own runtime, runs and students in PyTorch. To compare on the same
    runtime export the teacher too. On another device only artifacts are measured, and --teacher only says which of
    them is the teacher. Prints a table with the ratios. Writes --out, if asked. Ctrl-C keeps the rounds that are done.
    """
    from dspkd.fileio import ensure_file, write_json
    from dspkd_bench.bench import BenchConfig, run_bench
    from dspkd_bench.latency import NO_LIMIT, StopRule
    from dspkd_bench.peers import chosen_peers
    from dspkd_bench.recording import INTERRUPTED

    if max_rounds is not None and max_rounds < min_rounds:
        raise UsageError(
            f"--max-rounds {max_rounds} is below --min-rounds {min_rounds}", hint=f"add --min-rounds {max_rounds}"
        )

    bound = _fraction(max_latency_regression)
    baseline = _baseline(against)
    config = BenchConfig(
        folders=[*(folders or []), *([student] if student else [])],
        teacher=teacher,
        threads=threads,
        memory=memory,
        stop=StopRule(seconds=seconds, min_rounds=min_rounds, max_rounds=max_rounds or NO_LIMIT, precision=precision),
        command=shlex.join(["dspkd", *sys.argv[1:]]),
        device=device,
        peers=chosen_peers(peers) if peers else (),
        sustained_s=sustained,
        batches=_numbers("--batches", batches, 1, 4096),
        cores=None if cores is None else _numbers("--cores", cores, 0, 1023),
        providers=_providers(providers),
        keep_interrupted=True,
    )
    if out is not None:
        ensure_file(out)
    try:
        with reporting() as reporter:
            results = run_bench(config, reporter.progress)
    except KeyboardInterrupt:
        typer.echo("dspkd: interrupted; nothing is kept", err=True)
        raise typer.Exit(130) from None
    try:
        if out is not None:
            write_json(out, results)
    finally:
        # Also if the disk is full by now.
        if as_json:
            print_json(results)
        else:
            _show(results)
    if out is not None and not as_json:
        say(f"next: dspkd report {out} --out report.html")
    kept = f"what was measured before is in {out}" if out else "give --out to keep what is measured before"
    if results["interrupted"] == INTERRUPTED:
        typer.echo(f"dspkd: interrupted; {kept}", err=True)
        raise typer.Exit(130)
    if results["interrupted"]:
        raise DeviceError(f"the measurement broke off: {results['interrupted']}", hint=kept)
    if baseline is not None:
        _gate(baseline, results, bound, quiet=as_json)


def _show(results: dict[str, Any]) -> None:
    from rich.console import Console

    from dspkd_bench.table import results_table

    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(results_table(results))


def _fraction(text: str) -> float:
    """`5%` or `0.05` -> 0.05."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 10:
        raise UsageError(f"--max-latency-regression {text!r} is no share", hint="give for example 5% or 0.05")
    return value


def _numbers(option: str, text: str, least: int, most: int) -> tuple[int, ...]:
    """`0,2-4` -> (0, 2, 3, 4)."""
    numbers: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*([0-9]{1,4})(?:-([0-9]{1,4}))?\s*", part)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (0, -1)
        if not least <= first <= last <= most:
            raise UsageError(
                f"{option} {text!r} is no list of numbers from {least} to {most}", hint="give for example 1,8 or 0-3"
            )
        numbers += range(first, last + 1)
    return tuple(dict.fromkeys(numbers))


def _providers(text: str) -> tuple[str, ...]:
    from dspkd_bench.agent import PROVIDERS

    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in names if name not in PROVIDERS]
    if unknown:
        raise UsageError(f"--providers has {unknown[0]!r}", hint=f"known: {', '.join(PROVIDERS)}")
    return names


def _baseline(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    from dspkd_bench.report import read_results

    return read_results(path)


def _gate(baseline: dict[str, Any], results: dict[str, Any], bound: float, *, quiet: bool) -> None:
    from dspkd_bench.statistics import compare_with_baseline

    rows = compare_with_baseline(baseline, results, max_regression=bound)
    lines = [f"{row['verdict']}: {row['subject']} {_compared(row)}" for row in rows]
    if not quiet:
        for line in lines:
            say(line)
    for verdict, kind in (("fail", GateError), ("inconclusive", InconclusiveError)):
        found = [line for row, line in zip(rows, lines, strict=True) if row["verdict"] == verdict]
        if found:
            raise kind(
                f"{len(found)} of {len(rows)} subjects, at most {bound:.1%} slower allowed: {'; '.join(found)}",
                hint=_after_inconclusive(rows) if verdict == "inconclusive" else None,
            )


def _compared(row: Mapping[str, Any]) -> str:
    if row["ratio"] is None:
        return f"{row['reason']}, and the baseline has it"
    low, high = row["interval"]
    return f"takes {row['ratio']:.3f} of the baseline's time [{low:.3f}, {high:.3f}]"


def _after_inconclusive(rows: Sequence[Mapping[str, Any]]) -> str:
    if any(row["ratio"] is None for row in rows):
        return "measure all that the baseline has, under the names that it has there"
    return "measure longer, with nothing else running"


def report(
    results: list[Path] = typer.Argument(..., help="results.json of `dspkd bench`."),
    run: list[Path] = typer.Option(
        [], "--run", help="Run folders to show with curves and confusion matrix. Repeatable."
    ),
    out: Path = typer.Option(Path("report.html"), "--out", help="The page; a table if it ends in .csv or .md."),
) -> None:
    """Make one self-contained HTML page, or a table, from the results of one or several devices. Nothing is measured.

    Needs results.json; run folders are optional (those measured are taken from the results where they still lie there).
    Writes --out.
    """
    from dspkd_bench.report import collect, read_results, write_report
    from dspkd_bench.report_tables import table_writer

    write_table = table_writer(out)
    if write_table is not None:
        write_table([read_results(path) for path in results])
    else:
        write_report(out, collect(results, run))
    say(f"written to {out}")
