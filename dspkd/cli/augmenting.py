"""`dspkd data augment`: balance a data set with changed copies, as files."""

from __future__ import annotations

from pathlib import Path

import typer

from dspkd.cli.common import print_json, reporting, say
from dspkd.errors import UsageError

__all__ = ["augment"]


def augment(
    data: Path = typer.Argument(..., help="The images: a folder, a CSV or a MedMNIST .npz."),
    out: Path = typer.Option(..., "--out", help="A new folder: images/ and images.csv."),
    split: Path | None = typer.Option(
        None, "--split", help="A stored split.json. Without it the one that train makes without it."
    ),
    before_split: bool = typer.Option(
        False, "--before-split", help="The paper's order: copy everything and divide nothing. Its test part then leaks."
    ),
    to: str = typer.Option("mean", "--to", help="As many pictures as the average class (mean) or the largest (max)."),
    magnitude: float = typer.Option(0.3, "--magnitude", min=0.01, max=1.0, help="Share of each operation's range."),
    seed: int = typer.Option(0, "--seed", min=0, help="Of the operations."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON, and nothing else, on stdout."),
) -> None:
    """Write a data set with RandAugment copies of the pictures of rare classes (the paper's section 4.1).

    Training can do the same without files: --set augment.rand_augment=rare. Needs the images, in any of the layouts
    that the README lists. Writes every picture as it is and copies of those of the training part; the column split
    keeps the parts, and lesion_id and copy_of say where a copy comes from.
    """
    from dspkd.config import DataConfig
    from dspkd.data.copies import write_balanced
    from dspkd.data.sources import read_table
    from dspkd.train.prepare import prepare_data

    if to not in ("mean", "max"):
        raise UsageError(f"unknown --to {to!r}", hint="mean or max")
    if before_split and split is not None:
        raise UsageError("--before-split goes without --split", hint="give one of them")
    try:
        with reporting() as reporter:
            if before_split:
                table, parts = read_table(data), None
            else:
                config = DataConfig(root=data, split=split)
                found = prepare_data(config, classes=None, teacher=None, stored=None, progress=reporter.progress)
                table, parts = found.table, found.split
            written = write_balanced(
                table,
                out,
                split=parts,
                seed=seed,
                target="mean" if to == "mean" else "max",
                magnitude=magnitude,
                progress=reporter.progress,
            )
    except KeyboardInterrupt:
        typer.echo("dspkd: interrupted; nothing was written", err=True)
        raise typer.Exit(130) from None
    if as_json:
        print_json({"table": str(written.table), "pictures": written.pictures, "copies": written.copies})
        return
    copies = ", ".join(f"{name} {number}" for name, number in written.copies.items() if number)
    say(f"written to {written.table}: {written.pictures} pictures; copies: {copies or 'none'}")
    if before_split:
        say('next, to measure how much that flatters: dspkd train --set data.protocol="paper" --data ' + str(out))
