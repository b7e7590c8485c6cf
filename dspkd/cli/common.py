"""What several verbs share: printing results, progress, and finding what a folder holds."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspkd.errors import DeviceError, ModelError

if TYPE_CHECKING:
    from dspkd.evaluate import Classifier
    from dspkd.train.reporter import Reporter

__all__ = ["headline", "open_classifier", "print_json", "reporting", "say"]


def say(text: str) -> None:
    """A line of the result, on stdout."""
    sys.stdout.write(text + "\n")


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def reporting() -> Iterator[Reporter]:
    from dspkd.train.reporter import RichReporter

    reporter = RichReporter()
    try:
        yield reporter
    finally:
        reporter.close()


def open_classifier(folder: Path, *, device: str = "cpu") -> Classifier:
    """A run or student folder in PyTorch, or an artifact on its own runtime."""
    from dspkd.artifact import is_artifact_dir
    from dspkd.evaluate import student_classifier
    from dspkd.student import is_student_dir, load_student

    if is_student_dir(folder):
        student = load_student(folder)
        try:
            return student_classifier(student, device=device)
        except (RuntimeError, AssertionError) as error:  # torch's for an unknown name and for a missing driver
            raise DeviceError(
                f"device {device!r} cannot be used here: {str(error).splitlines()[0]}", hint="use --device cpu"
            ) from error
    if is_artifact_dir(folder):
        from dspkd.cli.sharing import artifact_classifier

        return artifact_classifier(folder)
    if not folder.is_dir():
        raise ModelError(f"{folder} does not exist", hint="give a run, a student or an artifact folder")
    if (folder / "config.toml").is_file():
        raise ModelError(
            f"{folder} is a run that has not finished", hint="go on with it: the same command and --resume"
        )
    raise ModelError(
        f"{folder} is neither a run, a student nor an artifact (no student.json, no artifact.json)",
        hint="give a folder that `dspkd train`, `distill` or `export` wrote",
    )


def headline(metrics: dict[str, Any]) -> str:
    """Accuracy, balanced accuracy and macro-F1 in one line, with intervals where they were computed."""
    parts = []
    for key, title in (("accuracy", "accuracy"), ("balanced_accuracy", "balanced accuracy"), ("macro_f1", "macro-F1")):
        interval = metrics.get("intervals", {}).get(key)
        spread = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
        parts.append(f"{title} {metrics[key]:.3f}{spread}")
    return ", ".join(parts) + f", n = {metrics['n']}"
