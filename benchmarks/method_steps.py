"""One full-size training step of every method: time, peak memory, and what the method's own layers add.

python benchmarks/method_steps.py [--teacher res2net101_26w_4s] [--student shufflenet_v2_x1_0] [--size 224]
                                  [--batch-size 8] [--steps 3] [--device cpu] [--only NAME ...]

Random weights and random pictures: neither changes what a step costs. Each method runs in a process of its own, so that
its peak is its own; the first step is not timed. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dspkd.distill import METHODS
from dspkd.models import Architecture, pretrained_preprocess
from dspkd.preprocess import Preprocess
from dspkd.student import Student, StudentCard
from dspkd.train.task import StageTask, method_context

CLASSES = tuple("ABCDEFGH")
FULL = {"generator_width": "full"}
# Every stage that the presets are made of, and the narrow generation block beside the full one.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "cross_entropy": ("cross_entropy", {}),
    "vanilla_kd": ("vanilla_kd", {}),
    "wsld": ("wsld", {}),
    "norm_kd": ("norm_kd", {}),
    "fitnets": ("fitnets", {}),
    "mgd": ("mgd", {}),
    "mgd, 256 wide": ("mgd", {"generator_width": 256}),
    "hf_masked_generation": ("hf_masked_generation", FULL),
    "hf_masked_generation, 256 wide": ("hf_masked_generation", {"generator_width": 256}),
    "hf_masked_generation, unmasked": ("hf_masked_generation", FULL | {"mask": "none"}),
    "hf_masked_generation, fitted HF": ("hf_masked_generation", FULL | {"hf": "fitted"}),
    "hf_fit": ("hf_fit", {}),
    "dsp_kd_joint": ("dsp_kd_joint", {"hf_masked_generation": FULL}),
    "d_kd": ("d_kd", {}),
    "ssd_head": ("ssd_head", {}),
    "ssd_kd": ("ssd_kd", {}),
    "eml": ("eml", {}),
}


def step_costs(row: str, args: argparse.Namespace) -> dict[str, float]:
    """Run the steps of one row in this process."""
    torch.manual_seed(0)
    device = torch.device(args.device)
    task = _task(row, args).to(device)
    task.place_teacher(device)
    task.train()
    trained = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9)
    pixels = torch.randint(0, 256, (args.batch_size, 3, args.size, args.size), dtype=torch.uint8, device=device)
    labels = torch.arange(args.batch_size, device=device) % len(CLASSES)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        task(pixels, labels, 0.5)["loss"].backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()
    times = [_seconds(step) for _ in range(args.steps)]
    peak = _peak_bytes(device)
    return {
        "seconds": statistics.median(times),
        "peak_gib": peak / 2**30,
        "own_parameters": sum(p.numel() for p in task.method.parameters()),
        "trained_parameters": sum(p.numel() for p in trained if p.grad is not None),
        "own_macs": _own_macs(task, pixels, labels) / args.batch_size,
    }


def _task(row: str, args: argparse.Namespace) -> StageTask:
    name, settings = ROWS[row]
    method_class = METHODS[name]
    architecture = Architecture(args.student)
    student = architecture.build(len(CLASSES)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    preprocess = pretrained_preprocess(args.teacher, args.size)
    teacher = _teacher(args.teacher, preprocess) if method_class.needs_teacher else None
    context = method_context(student, architecture, len(CLASSES), args.size, teacher, maps=method_class.needs_maps)
    method = method_class.build(method_class.Settings(**settings), context)
    return StageTask(student, preprocess, method, teacher, memory_format=torch.channels_last)


def _teacher(name: str, preprocess: Preprocess) -> Student:
    architecture = Architecture(name)
    card = StudentCard(role="baseline", architecture=architecture.name, classes=CLASSES, preprocess=preprocess)
    return Student(architecture.build(len(CLASSES)).eval(), card, Path())


def _seconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _own_macs(task: StageTask, pixels: Tensor, labels: Tensor) -> int:
    """Of the method's layers and losses in one forward pass."""
    with FlopCounterMode(display=False, depth=2) as counter:
        task(pixels, labels, 0.5)
    return sum(counter.get_flop_counts().get("StageTask.method", {}).values()) // 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="res2net101_26w_4s")
    parser.add_argument("--student", default="shufflenet_v2_x1_0")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="NAME")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.json:
        print(json.dumps(step_costs(args.only[0], args)))
        return
    load = os.getloadavg()[0]
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()}, {os.cpu_count()} cores"
    print(
        f"{args.teacher} -> {args.student}, {args.size} px, batch {args.batch_size}, float32, {where}, torch "
        f"{torch.__version__}; median of {args.steps} steps after one; load before the start {load:.1f}\n"
    )
    print("| stage | step, s | peak memory, GiB | own parameters, M | own MACs an image, G | trained parameters, M |")
    print("|---|---|---|---|---|---|", flush=True)
    for row in args.only:
        print(_line(row, _in_own_process(row, args)), flush=True)


def _in_own_process(row: str, args: argparse.Namespace) -> dict[str, float] | None:
    """None if the process ended without an answer, for want of memory for instance."""
    names = ("teacher", "student", "size", "batch_size", "steps", "device")
    flags = [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(args, name)))]
    command = [sys.executable, __file__, *flags, "--json", "--only", row]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    costs: dict[str, float] | None = json.loads(done.stdout) if done.returncode == 0 else None
    return costs


def _line(row: str, costs: dict[str, float] | None) -> str:
    if costs is None:
        return f"| {row} | failed | | | | |"
    return (
        f"| {row} | {costs['seconds']:.2f} | {costs['peak_gib']:.2f} | {costs['own_parameters'] / 1e6:.2f} | "
        f"{costs['own_macs'] / 1e9:.3f} | {costs['trained_parameters'] / 1e6:.2f} |"
    )


if __name__ == "__main__":
    main()
