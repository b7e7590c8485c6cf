"""The files of a comparison: tables, results and pictures."""

from __future__ import annotations

from pathlib import Path

from dspkd.compare.results import Collected
from dspkd.compare.tables import comparison_csv, comparison_markdown, runs_csv
from dspkd.fileio import write_json, write_text

__all__ = ["write_tables"]


def write_tables(out: Path, collected: Collected) -> None:
    """tables.md, tables.csv, runs.csv, results.json, and for each pair of networks the curves (figure 9 of the paper)
    and the confusion matrices (figure 10); without matplotlib there are no pictures.
    """
    from dspkd.figures import confusion_grid_svg, curves_grid_svg

    results = collected.results
    write_json(out / "results.json", results)
    write_text(out / "tables.md", comparison_markdown(results))
    write_text(out / "tables.csv", comparison_csv(results))
    write_text(out / "runs.csv", runs_csv(results))
    labels = {method["name"]: method["label"] for method in results["methods"]}
    for pair in results["pairs"]:
        histories = {}
        for row in pair["rows"]:
            own = [
                run["run"]
                for run in results["runs"]
                if (run["method"], run["student"]) == (row["method"], pair["student"])
                and run["teacher"] in (pair["teacher"], None)
            ]
            histories[labels[row["method"]]] = [collected.histories[name] for name in own]
        confusions = {labels[row["method"]]: row["confusion"] for row in pair["rows"] if "confusion" in row}
        name = "-".join(filter(None, [pair["teacher"], pair["student"]]))
        for file, picture in (
            (f"curves-{name}.svg", curves_grid_svg({k: v for k, v in histories.items() if v})),
            (f"confusion-{name}.svg", confusion_grid_svg(results["classes"], confusions)),
        ):
            if picture is not None:
                write_text(out / file, picture)
