"""The rewritten network against the network as its library has it: latency, size and difference in float64.

python benchmarks/rewrite_latency.py RUN DATA [SIZE]

Compiles RUN's network both ways for ONNX Runtime and ExecuTorch, in fp32 and int8 (calibrated on images of the training
part of DATA), and lets the two forms of each take turns: batch 1, one thread. All eight in turn would push each other's
weights out of the caches, a cost that both forms share and that a device with one model does not have. SIZE is the side
in pixels, by default the one that the network was trained at. Prints Markdown.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dspkd.cli.sharing import training_images
from dspkd.runtimes import load_model, to_input
from dspkd.student import Student, load_student
from dspkd.train.reporter import Reporter
from dspkd_bench.environment import describe_environment
from dspkd_bench.latency import StopRule, latency_summary, measure_interleaved, ratio_of_medians
from dspkd_export.deploy_module import deploy_module
from dspkd_export.export import TARGETS
from dspkd_export.job import ExportJob

PRECISIONS = ("fp32", "int8")
FORMS = {True: "rewritten", False: "as it is"}


def main(run: Path, data: Path, size: int | None) -> None:
    student = load_student(run)
    if size is not None:
        preprocess = student.card.preprocess.model_copy(update={"size": size})
        student = replace(student, card=student.card.model_copy(update={"preprocess": preprocess}))
    calibration = training_images(student, data, 256, Reporter())
    pixels = calibration.pixels[:1]
    with tempfile.TemporaryDirectory() as temporary:
        calls: dict[str, Callable[[], object]] = {}
        sizes, details = {}, {}
        for target, precision, rewrite in (
            (t, p, r) for t in ("onnx", "executorch") for p in PRECISIONS for r in FORMS
        ):
            name = f"{target} {precision} {FORMS[rewrite]}"
            folder = Path(temporary) / name.replace(" ", "-")
            folder.mkdir()
            details[name] = TARGETS[target].compile(ExportJob(student, folder, precision, rewrite, calibration)).details
            file = folder / ("model_static.onnx" if target == "onnx" else "model.pte")
            sizes[name] = file.stat().st_size
            calls[name] = _call(load_model(target, file, threads=1).run, to_input(pixels))
        times: dict[str, list[float]] = {}
        stop = StopRule(warmup_rounds=50, min_rounds=300, max_rounds=4000, seconds=20.0)
        for target, precision in ((t, p) for t in ("onnx", "executorch") for p in PRECISIONS):
            pair = [f"{target} {precision} {form}" for form in FORMS.values()]
            measured = measure_interleaved({name: calls[name] for name in pair}, stop)
            times |= {name: series.ms for name, series in measured.items()}
    machine = describe_environment(1)
    what = f"{student.card.architecture}, {student.card.preprocess.size} px"
    print(f"{what}, {machine['cpu']}, 1 thread, {min(map(len, times.values()))} rounds or more\n")
    print("| runtime | precision | as it is, ms | rewritten, ms | rewritten / as it is (95 %) | file, MB | delegates |")
    print("|---|---|---|---|---|---|---|")
    for target in ("onnx", "executorch"):
        for precision in PRECISIONS:
            ours, stock = (f"{target} {precision} {form}" for form in FORMS.values())
            ratio = ratio_of_medians(times[ours], times[stock])
            low, high = ratio["interval"]
            delegates = " -> ".join(str(details[name].get("delegates", "")) for name in (stock, ours)).strip(" ->")
            print(
                f"| {target} | {precision} | {latency_summary(times[stock])['p50_ms']:.2f} "
                f"| {latency_summary(times[ours])['p50_ms']:.2f} | {ratio['ratio']:.2f} [{low:.2f}, {high:.2f}] "
                f"| {sizes[stock] / 1e6:.2f} -> {sizes[ours] / 1e6:.2f} | {delegates} |"
            )
    difference = float64_difference(student, calibration.pixels[:100])
    print(f"\nLargest difference of a probability in float64 over 100 real images: {difference:.1e}.")


def _call(run: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> Callable[[], object]:
    return lambda: run(images)


@torch.no_grad()
def float64_difference(student: Student, pixels: np.ndarray) -> float:
    images = torch.from_numpy(to_input(pixels)).double()
    student.model.double()
    ours, stock = (deploy_module(student, rewrite=rewrite).double() for rewrite in (True, False))
    return max(float((ours(i[None]) - stock(i[None])).abs().max()) for i in images)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
