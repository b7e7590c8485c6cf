"""What Vela's cycle model expects the student to cost on Arm Ethos-U, as its library has it and rewritten.

python benchmarks/ethos_u.py RUN DATA [SIZE]

Compiles RUN's network both ways for every accelerator, in int8 calibrated on images of the training part of DATA. The
figures are estimates of a compiler, the same on every machine; nothing is run. SIZE is the side in pixels, by default
the one that the network was trained at. Prints Markdown.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from dspkd.cli.sharing import training_images
from dspkd.student import load_student
from dspkd.train.reporter import Reporter
from dspkd_export.executorch_backends import ETHOS_U, compile_executorch_ethos_u
from dspkd_export.job import ExportJob

# The ranges decide what the network answers, and leave what it costs as it is.
CALIBRATION_IMAGES = 32


def main(run: Path, data: Path, size: int | None) -> None:
    student = load_student(run)
    if size is not None:
        preprocess = student.card.preprocess.model_copy(update={"size": size})
        student = replace(student, card=student.card.model_copy(update={"preprocess": preprocess}))
    calibration = training_images(student, data, CALIBRATION_IMAGES, Reporter())
    rows = []
    for accelerator in ETHOS_U:
        costs = []
        for rewrite in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                job = ExportJob(student, Path(folder), "int8", rewrite, calibration)
                costs.append(compile_executorch_ethos_u(job, accelerator).details["cycle_model"])
        rows.append(_row(accelerator, *costs))
    tool, what = costs[0]["tool"], f"{student.card.architecture}, {student.card.preprocess.size} px, int8"
    print(f"{what}, estimates of {tool} (as it is -> rewritten)\n")
    print("| accelerator | clock, MHz | memory | ms | rewritten / as it is | kilocycles | SRAM, KiB | traffic, MB |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


def _row(accelerator: str, stock: dict[str, Any], ours: dict[str, Any]) -> str:
    both = (stock, ours)
    cells = (
        accelerator,
        f"{stock['clock_hz'] / 1e6:.0f}",
        stock["memory_mode"],
        " -> ".join(f"{cost['estimated_ms']:.2f}" for cost in both),
        f"{ours['cycles'] / stock['cycles']:.2f}",
        " -> ".join(f"{cost['cycles'] / 1e3:.0f}" for cost in both),
        " -> ".join(f"{cost['memory_bytes']['sram'] / 1024:.0f}" for cost in both),
        " -> ".join(f"{sum(cost['traffic_bytes'].values()) / 1e6:.1f}" for cost in both),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
