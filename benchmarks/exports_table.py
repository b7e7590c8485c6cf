"""Certificates of a folder of artifacts as a Markdown table: python benchmarks/exports_table.py ARTIFACTS"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

METRICS = ("balanced_accuracy", "melanoma_sensitivity", "calibration_error")


def main(folder: Path) -> None:
    print("| artifact | file, MB | same class | largest difference | " + " | ".join(METRICS).replace("_", " ") + " |")
    print("|---" * (4 + len(METRICS)) + "|")
    for path in sorted(folder.glob("*/artifact.json")):
        card = json.loads(path.read_text(encoding="utf-8"))
        certificate = card["certificate"]
        cells = [
            f"{card['target']} {card['precision']}",
            f"{card['files'][card['model_file']]['bytes'] / 1e6:.2f}",
            f"{certificate['top1_agreement']:.2%}",
            f"{certificate['max_abs_difference']:.1e}",
            *(_cell(certificate["paired"]["metrics"].get(name)) for name in METRICS),
        ]
        print("| " + " | ".join(cells) + " |")


def _cell(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return "no class MEL"
    low, high = metric["interval"]
    return f"{metric['deployed']:.3f} ({metric['difference']:+.3f} [{low:+.3f}, {high:+.3f}])"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
