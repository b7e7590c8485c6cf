"""`dspkd doctor`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dspkd.cli.common import print_json, say
from dspkd.errors import DeviceError

if TYPE_CHECKING:
    from dspkd_bench.doctor import Check

SCHEMA_VERSION = 1


def doctor(
    artifacts: list[Path] = typer.Argument(None, help="Artifact folders that shall run there; their runtimes count."),
    device: str = typer.Option("local", "--device", help="local, ssh://[user@]host[:port] or adb:[SERIAL]."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON, and nothing else, on stdout."),
) -> None:
    """Say what a machine has, what it lacks, and the command that mends it; exit code 5 if something needed is missing.

    Needs nothing; a device behind ssh needs Python 3.8. Here that is what train, distill, export to ONNX and bench
    need; on a device, a runtime; for a phone, what the runner is compiled of here; with artifacts, theirs. Nothing is
    installed or changed. Writes nothing, and leaves nothing on the device.
    """
    from dspkd.artifact import load_artifact
    from dspkd.devices import open_device
    from dspkd_bench.doctor import check_machine, examine

    wanted = [load_artifact(folder) for folder in artifacts or []]
    with open_device(device) as opened:
        url, machine = opened.url, examine(opened)
    checks = check_machine(machine, url, wanted)
    missing = [check for check in checks if check.state == "missing"]
    if as_json:
        rows = [asdict(check) for check in checks]
        value = {"schema_version": SCHEMA_VERSION, "device": url, "ok": not missing, "checks": rows, "machine": machine}
        print_json(value)
    else:
        _show(checks)
    if missing:
        names = ", ".join(check.name for check in missing)
        raise DeviceError(f"{url} lacks what is needed: {names}", hint=missing[0].fix)


def _show(checks: Sequence[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "missing": "bold red", "warning": "yellow", "not needed": "dim"}
    table = Table("what", "state", "found")
    for check in checks:
        # Text, since names and messages may hold brackets, which rich would take for styles.
        table.add_row(Text(check.name), Text(check.state, style=styles[check.state]), Text(check.found))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    for state, title in (("missing", "to mend"), ("warning", "worth mending"), ("not needed", "only if you want it")):
        # A command on a line of its own and never wrapped, so that it can be copied.
        fixes = dict.fromkeys(check.fix for check in checks if check.state == state and check.fix)
        if fixes:
            say("\n".join([f"{title}:", *(f"  {fix}" for fix in fixes)]))
