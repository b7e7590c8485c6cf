"""`dspkd data`: look at a data set."""

from __future__ import annotations

from pathlib import Path

import typer

from dspkd.cli.common import print_json, say

__all__ = ["app", "check"]

app = typer.Typer(no_args_is_help=True)


def check(
    data: Path = typer.Argument(..., help="The images: a folder, a MedMNIST .npz or a CSV."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON, and nothing else, on stdout."),
) -> None:
    """Count what a data set holds, per class.

    Needs the images, in any of the layouts that the README lists. Writes nothing.
    """
    from dspkd.data.sources import read_table

    counts = read_table(data).counts()
    if as_json:
        print_json({"classes": counts})
    else:
        for name, number in counts.items():
            say(f"{name}  {number}")
