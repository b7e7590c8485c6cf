"""Checking a hand-over folder on any machine: seal, hashes, what the model says of itself, and its golden answers."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dspkd.artifact import GOLDEN, Artifact, is_artifact_dir, load_artifact
from dspkd.errors import VerificationError
from dspkd.runtimes import load_model, to_input
from dspkd.student import is_student_dir, load_student
from dspkd_export.certificate import BOUNDS
from dspkd_export.onnx_target import metadata_of, onnx_metadata

__all__ = ["VerifyReport", "verify"]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """`checks`: one line for each thing that was found to hold; `max_abs_difference` on the golden pictures here."""

    path: Path
    kind: str
    checks: tuple[str, ...]
    max_abs_difference: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "kind": self.kind,
            "passed": True,
            "checks": list(self.checks),
            "max_abs_difference": self.max_abs_difference,
        }


def verify(folder: Path) -> VerifyReport:
    """Verify a student or an artifact folder. Raises VerificationError naming the file or field that differs."""
    if is_artifact_dir(folder):
        return _verify_artifact(folder)
    if is_student_dir(folder):
        student = load_student(folder)
        checks = (
            "student.json is unchanged",
            "model.safetensors matches its hash",
            f"weights fit {student.card.architecture}",
        )
        return VerifyReport(folder, "student", checks)
    raise VerificationError(
        f"{folder} is neither an artifact nor a student (no artifact.json, no student.json)", hint="check the path"
    )


def _verify_artifact(folder: Path) -> VerifyReport:
    artifact = load_artifact(folder)
    card = artifact.card
    checks = ["artifact.json is unchanged", f"{len(card.files)} files match their hashes"]
    if not card.certificate.get("passed"):
        raise VerificationError(
            f"{folder / 'artifact.json'}: its certificate failed when it was exported",
            hint="export again, or do not use it",
        )
    checks.append(f"the certificate passed on {card.certificate['n']} images")
    if card.target == "onnx":
        _check_onnx_metadata(artifact)
        checks.append("classes and preprocessing agree with those inside the model")
    difference = _check_golden(artifact)
    checks.append(f"golden answers repeat here (largest difference {difference:.1e})")
    return VerifyReport(folder, "artifact", tuple(checks), difference)


def _check_onnx_metadata(artifact: Artifact) -> None:
    expected = onnx_metadata(artifact.card.classes, artifact.card.preprocess)
    for name in artifact.card.files:
        if not name.endswith(".onnx"):
            continue
        inside = metadata_of(artifact.path / name)
        for key, field in (("dspkd.classes", "classes"), ("dspkd.preprocess", "preprocess")):
            if json.loads(inside.get(key, "null")) != json.loads(expected[key]):
                raise VerificationError(
                    f"{artifact.path / 'artifact.json'}: {field} {expected[key]} differ "
                    f"from those inside {name}: {inside.get(key)}",
                    hint="the manifest belongs to another model: export again",
                )


def _check_golden(artifact: Artifact) -> float:
    path = artifact.path / GOLDEN
    try:
        with np.load(path, allow_pickle=False) as golden:
            pixels, expected = golden["pixels"], {name: golden[name] for name in ("pytorch", "deployed")}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise VerificationError(f"{path} cannot be read: {error}", hint="export again") from error
    size = artifact.card.preprocess.size
    if pixels.shape[1:] != (size, size, 3) or expected["pytorch"].shape != (len(pixels), len(artifact.card.classes)):
        raise VerificationError(
            f"{path}: pixels {pixels.shape} do not fit size {size} and {len(artifact.card.classes)} classes"
        )
    _, bound = BOUNDS[artifact.card.precision]
    largest = 0.0
    for name in (file for file in artifact.card.files if file != GOLDEN):
        got = load_model(artifact.card.target, artifact.path / name).run(to_input(pixels))
        for origin, answer in expected.items():
            difference = float(np.abs(got.astype(np.float64) - answer).max())
            if not difference <= bound:
                raise VerificationError(
                    f"{artifact.path / name} does not repeat its golden answers ({origin}): "
                    f"largest difference {difference:.2e}, allowed {bound:.0e}",
                    hint="the file, the runtime or this processor computes something else",
                )
            largest = max(largest, difference)
    return largest
