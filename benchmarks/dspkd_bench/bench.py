"""`dspkd bench`: teacher beside student, any number of artifacts, one interleaved run, one JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from dspkd.errors import UsageError
from dspkd.models import create_model
from dspkd.student import load_student
from dspkd_bench.complexity import count
from dspkd_bench.environment import describe_environment
from dspkd_bench.latency import StopRule, latency_summary, measure_interleaved, ratio_of_medians
from dspkd_bench.memory import measure_memory
from dspkd_bench.subjects import Subject, open_subject

__all__ = ["RESULTS_SCHEMA_VERSION", "BenchConfig", "run_bench"]

RESULTS_SCHEMA_VERSION = 1
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """`folders` are artifacts, runs or students; `teacher` is a model folder to compare with."""

    folders: Sequence[Path]
    teacher: Path | None = None
    threads: int = 1
    memory: bool = True
    stop: StopRule = field(default_factory=StopRule)
    command: str = ""


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
    calls = {name: _call(subject) for name, subject in zip(names, subjects, strict=True)}
    times = measure_interleaved(calls, config.stop, progress=progress)
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
        "environment": describe_environment(config.threads),
        "settings": {"batch": 1, "threads": config.threads, "input": "seeded noise, in memory", **asdict(config.stop)},
        "subjects": records,
        "ratios": _ratios(records, times),
    }


def _unique_names(subjects: Sequence[Subject]) -> list[str]:
    names: list[str] = []
    for subject in subjects:
        taken = sum(name == subject.name or name.startswith(f"{subject.name} (") for name in names)
        names.append(f"{subject.name} ({subject.path.name})" if taken else subject.name)
    return names


def _call(subject: Subject) -> Callable[[], object]:
    images = np.random.default_rng(0).random((1, 3, subject.size, subject.size), dtype=np.float32)
    return lambda: subject.run(images)


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
