"""`dspkd data`: look at a data set."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dspkd.cli.common import print_json, reporting, say
from dspkd.errors import GateError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dspkd.data.audit import Audit
    from dspkd.data.table import Fault

__all__ = ["app", "check"]

app = typer.Typer(no_args_is_help=True)


def check(
    data: Path = typer.Argument(..., help="The images: a folder, a CSV or a MedMNIST .npz."),
    split: Path | None = typer.Option(None, "--split", help="A stored split.json; nothing may cross its parts."),
    tables_only: bool = typer.Option(
        False, "--tables-only", help="Read the tables alone; the images need not be there."
    ),
    out: Path | None = typer.Option(
        None, "--out", help="Folder for check.json and pairs.png, a contact sheet of the suspicious pairs."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON, and nothing else, on stdout."),
) -> None:
    """Look for whatever would make results wrong: unreadable images, labels that disagree, duplicates, leaks.

    Needs the images, in any of the layouts that the README lists. Every image is decoded and compared with every other,
    mirrored and turned, too. Exit code 3 if something would poison a result; warnings and notes do not count. Writes
    nothing without --out.
    """
    from dspkd.data.audit import audit

    try:
        with reporting() as reporter:
            found = audit(data, split=split, decode=not tables_only, progress=reporter.progress)
    except KeyboardInterrupt:
        typer.echo("dspkd: interrupted; nothing was written", err=True)
        raise typer.Exit(130) from None
    if out is not None:
        _write(found, out)
    if as_json:
        print_json(found.to_json())
    else:
        _show(found)
        if out is not None:
            say(f"written to {out}: check.json" + (", pairs.png" if found.pairs else ""))
    if found.errors:
        kinds = list(dict.fromkeys(fault.kind for fault in found.errors))
        raise GateError(
            f"{data}: {len(found.errors)} faults would make results wrong or impossible ({', '.join(kinds)})",
            hint=found.errors[0].hint or found.errors[0].message,
        )


def _write(found: Audit, out: Path) -> None:
    from dspkd.data.contact_sheet import write_contact_sheet
    from dspkd.fileio import ensure_dir, write_json

    ensure_dir(out)
    write_json(out / "check.json", found.to_json())
    sheet = out / "pairs.png"
    if found.pairs:
        write_contact_sheet(sheet, found.pairs)
    else:
        sheet.unlink(missing_ok=True)  # of an earlier check


def _show(found: Audit) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 160)
    counts = found.counts()
    say(f"{found.table.root}: {found.table.layout}, {len(found.table)} images")
    if counts:
        columns = list(next(iter(counts.values())))
        table = Table("class")
        for column in columns:
            table.add_column(column, justify="right")
        for name, row in counts.items():
            table.add_row(Text(name), *(str(row[column]) for column in columns))
        console.print(table)
    if found.sizes and found.sizes["most_common"]:
        common = ", ".join(f"{w} x {h} ({e['images']})" for e in found.sizes["most_common"] for w, h in [e["size"]])
        say(f"sizes: {common}")
    _show_faults(console, found.faults)


def _show_faults(console: object, faults: Sequence[Fault]) -> None:
    """One row for each kind, with its first case; --json has them all."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    assert isinstance(console, Console)
    styles = {"error": "bold red", "warning": "yellow", "note": "dim"}
    table = Table("", "what", "cases", "the first, and what to do")
    for severity, kind in dict.fromkeys((fault.severity, fault.kind) for fault in faults):
        own = [fault for fault in faults if (fault.severity, fault.kind) == (severity, kind)]
        cases = sum(max(1, len(fault.images)) if len(own) == 1 else 1 for fault in own)
        text = own[0].message + (f" - {own[0].hint}" if own[0].hint else "")
        # Text, since names may hold brackets, which rich would take for styles.
        table.add_row(Text(severity, style=styles[severity]), Text(kind), str(cases), Text(text))
    if faults:
        console.print(table)
    else:
        say("nothing to complain about")
