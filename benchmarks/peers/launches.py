"""Two LiteRT programs in turns, in several processes one after the other.

python benchmarks/peers/launches.py OURS.tflite STOCK.tflite [--launches 8] [--seconds 1.5]

Where the memory of a program comes to lie is drawn once a process, and moves its times by a few percent: more than the
interval of one process says. Random input, batch 1, one thread; copying input and output is timed. Prints Markdown.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from dspkd.runtimes import open_litert
from dspkd_bench.latency import StopRule, measure_interleaved


def call_of(file: Path) -> Callable[[], object]:
    program = open_litert(file, 1)
    shape, dtype = program.taken["shape"], program.taken["dtype"]
    floats = np.random.default_rng(0).random(shape, dtype=np.float32)
    value = floats if dtype is np.float32 else (floats * 100).astype(dtype)
    return lambda: program.run(value)


def one_launch(files: list[Path], seconds: float) -> None:
    stop = StopRule(warmup_rounds=20, min_rounds=50, seconds=seconds)
    series = measure_interleaved({str(place): call_of(file) for place, file in enumerate(files)}, stop)
    print(*(median(one.ms) for one in series.values()))


def main(files: list[Path], launches: int, seconds: float) -> None:
    command = [sys.executable, __file__, *map(str, files), "--seconds", str(seconds), "--one"]
    print("| launch | ours, ms | stock, ms | ours / stock |\n|---|---|---|---|")
    ratios = []
    for launch in range(1, launches + 1):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
        ours, stock = (float(word) for word in done.stdout.split())
        ratios.append(ours / stock)
        print(f"| {launch} | {ours:.2f} | {stock:.2f} | {ours / stock:.3f} |")
    print(f"\nMedian {median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Two LiteRT programs in turns, in several processes.")
    parser.add_argument("files", type=Path, nargs=2)
    parser.add_argument("--launches", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one_launch(given.files, given.seconds)
    else:
        main(given.files, given.launches, given.seconds)
