"""Certificates of folders of artifacts as a Markdown table: python benchmarks/exports_table.py ARTIFACTS ..."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

METRICS = ("balanced_accuracy", "melanoma_sensitivity", "calibration_error")


def main(folders: list[Path]) -> None:
    print("| artifact | file, MB | certified on | same class | largest difference | ", end="")
    print(" | ".join(METRICS).replace("_", " ") + " |")
    print("|---" * (5 + len(METRICS)) + "|")
    for path in sorted(path for folder in folders for path in folder.glob("*/artifact.json")):
        card = json.loads(path.read_text(encoding="utf-8"))
        certificate, where = card["certificate"], ""
        if "stand_in" in certificate:
            certificate, where = certificate["stand_in"] or {}, "not on its target; "
        name = f"{card['target']} {card['precision']}" + (", trained" if card["details"].get("trained_int8") else "")
        cells = [name, f"{card['files'][card['model_file']]['bytes'] / 1e6:.2f}"]
        if certificate:
            cells += [
                where + certificate["runtime"] + ("" if certificate["passed"] else ": **fails**"),
                f"{certificate['top1_agreement']:.2%}",
                f"{certificate['max_abs_difference']:.1e}",
                *(_cell(certificate["paired"]["metrics"].get(metric)) for metric in METRICS),
            ]
        else:
            cells += ["not on its target", *[""] * (2 + len(METRICS))]
        print("| " + " | ".join(cells) + " |")


def _cell(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return "no class MEL"
    low, high = metric["interval"]
    return f"{metric['deployed']:.3f} ({metric['difference']:+.3f} [{low:+.3f}, {high:+.3f}])"


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
