"""`dspkd bench`: teacher beside student, any number of artifacts, one interleaved run, one JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dspkd.errors import UsageError
from dspkd.models import create_model
from dspkd.preprocess import resize_square
from dspkd.student import load_student
from dspkd_bench.complexity import count
from dspkd_bench.environment import describe_environment, load_average
from dspkd_bench.latency import StopRule, latency_summary, measure_interleaved, ratio_of_medians
from dspkd_bench.memory import measure_memory
from dspkd_bench.subjects import Subject, open_subject

__all__ = ["RESULTS_SCHEMA_VERSION", "BenchConfig", "run_bench"]

RESULTS_SCHEMA_VERSION = 1
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """`folders` are artifacts, runs or students; `teacher` is a model folder to compare with.

    `pixels`, uint8 (N, H, W, 3) squares, are the pictures to run on, one after the other; without them seeded noise
    is used. The time of these networks does not depend on what they see, as long as it is no degenerate (denormal)
    input.
    """

    folders: Sequence[Path]
    teacher: Path | None = None
    threads: int = 1
    memory: bool = True
    stop: StopRule = field(default_factory=StopRule)
    command: str = ""
    pixels: np.ndarray | None = None


def run_bench(config: BenchConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Measure everything once and return results.json's content (schema version 1).

    `subjects` hold complexity, latency, memory and accuracy of each; `ratios` say how many times smaller or faster each
    student is than the teacher, on the same runtime where the teacher was exported for it, else in PyTorch.
    """
    if not config.folders and config.teacher is None:
        raise UsageError("nothing to measure", hint="give artifact, run or student folders, or --teacher")
    teacher_sha256 = load_student(config.teacher).card.weights_sha256 if config.teacher else None
    folders = list(dict.fromkeys([*([config.teacher] if config.teacher else []), *config.folders]))
    subjects = [open_subject(folder, threads=config.threads, teacher_sha256=teacher_sha256) for folder in folders]
    names = _unique_names(subjects)
    calls = {name: _call(subject, config.pixels) for name, subject in zip(names, subjects, strict=True)}
    environment = describe_environment(config.threads)
    times = measure_interleaved(calls, config.stop, progress=progress)
    load_after = load_average()
    records = []
    for number, (name, subject) in enumerate(zip(names, subjects, strict=True)):
        if progress and config.memory:
            progress(number, len(subjects), "measuring memory")
        records.append(_record(name, subject, times[name], config))
    return {
        "schema_version": RESULTS_SCHEMA_VERSION,
        "kind": "bench-results",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": config.command,
        "environment": environment | {"load_average_1min_after": load_after},
        "settings": {
            "batch": 1,
            "threads": config.threads,
            "input": "seeded noise" if config.pixels is None else f"{len(config.pixels)} pictures",
            **asdict(config.stop),
        },
        "subjects": records,
        "ratios": _ratios(records, times),
    }


def _unique_names(subjects: Sequence[Subject]) -> list[str]:
    names: list[str] = []
    for subject in subjects:
        taken = sum(name == subject.name or name.startswith(f"{subject.name} (") for name in names)
        names.append(f"{subject.name} ({subject.path.name})" if taken else subject.name)
    return names


def _call(subject: Subject, pixels: np.ndarray | None) -> Callable[[], object]:
    """One inference with batch 1; the input is ready in memory."""
    if pixels is None:
        noise = np.random.default_rng(0).integers(0, 256, (1, subject.size, subject.size, 3), dtype=np.uint8)
        pictures = [subject.input_of(noise)]
    else:
        squares = (resize_square(Image.fromarray(one), subject.size, "bilinear") for one in pixels)
        pictures = [subject.input_of(square[None]) for square in squares]
    following = cycle(pictures)
    return lambda: subject.run(next(following))


def _record(name: str, subject: Subject, times_ms: list[float], config: BenchConfig) -> dict[str, Any]:
    complexity = count(create_model(subject.architecture, subject.num_classes), subject.size)
    return {
        "name": name,
        "role": subject.role,
        "path": str(subject.path),
        "architecture": subject.architecture,
        "target": subject.target,
        "precision": subject.precision,
        "runtime": subject.runtime,
        "weights_sha256": subject.weights_sha256,
        "file_bytes": subject.file_bytes,
        "complexity": complexity.as_dict(),
        "latency": latency_summary(times_ms),
        "memory": measure_memory(subject.path, threads=config.threads) if config.memory else None,
        "validation": subject.validation,
        "certificate": subject.certificate,
    }


def _ratios(records: list[dict[str, Any]], times: dict[str, list[float]]) -> list[dict[str, Any]]:
    teachers = {record["target"]: record for record in reversed(records) if record["role"] == "teacher"}
    ratios = []
    for record in records:
        if record["role"] == "teacher" or not teachers:
            continue
        teacher = teachers.get(record["target"]) or teachers.get("pytorch") or next(iter(teachers.values()))
        own, theirs = record["complexity"], teacher["complexity"]
        ratios.append(
            {
                "subject": record["name"],
                "teacher": teacher["name"],
                "same_runtime": teacher["target"] == record["target"],
                "parameters": theirs["parameters"] / own["parameters"],
                "macs": theirs["macs"] / own["macs"],
                "file_bytes": teacher["file_bytes"] / record["file_bytes"],
                "latency": ratio_of_medians(times[teacher["name"]], times[record["name"]]),
            }
        )
    return ratios
