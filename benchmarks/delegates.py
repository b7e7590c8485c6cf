"""XNNPACK delegates of networks as they are and rewritten: python benchmarks/delegates.py SIZE NAME ...

The weights are random: only the structure of the compiled program is looked at. Prints Markdown.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from dspkd.models import Architecture
from dspkd.preprocess import Preprocess
from dspkd.student import Student, StudentCard
from dspkd_export.executorch_target import compile_executorch
from dspkd_export.job import ExportJob

COUNTS = ("delegates", "delegated_nodes", "nodes_outside")


def main(size: int, names: list[str]) -> None:
    print("| network | px | as it is: delegates / nodes inside / nodes outside | rewritten |")
    print("|---|---|---|---|")
    for name in names:
        torch.manual_seed(0)
        architecture = Architecture(name)
        card = StudentCard(
            role="teacher", architecture=architecture.name, classes=tuple("abcdefgh"), preprocess=Preprocess(size=size)
        )
        with tempfile.TemporaryDirectory() as temporary:
            student = Student(architecture.build(len(card.classes)).eval(), card, Path(temporary))
            cells = []
            for rewrite in (False, True):
                details = compile_executorch(ExportJob(student, Path(temporary), "fp32", rewrite)).details
                cells.append(" / ".join(str(details[count]) for count in COUNTS))
        print(f"| {name} | {size} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
