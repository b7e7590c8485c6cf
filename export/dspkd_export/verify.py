"""Checking a hand-over folder on any machine: seal, hashes, what the model says of itself, and its golden answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dspkd.artifact import CARD, GOLDEN, Artifact, is_artifact_dir, load_artifact
from dspkd.errors import DeviceError, VerificationError
from dspkd.runtimes import load_model
from dspkd.student import is_student_dir, load_student
from dspkd_export.bounds import BOUNDS
from dspkd_export.golden import Golden, read_golden
from dspkd_export.onnx_target import metadata_of

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
    # The seal covers the manifest only; what it does not list has no hash to be compared with.
    if GOLDEN not in card.files:
        raise VerificationError(f"{folder / CARD}: {GOLDEN} is not among its files", hint="export again")
    if card.precision not in BOUNDS:
        raise VerificationError(
            f"{folder / CARD}: unknown precision {card.precision!r}",
            hint=f"known: {', '.join(BOUNDS)}; or upgrade dspkd",
        )
    _check_certificate(artifact)
    certificate = card.certificate
    if certificate["passed"] is None:
        checks.append(f"not certified: {certificate['not_run']}")
    else:
        checks.append(f"the certificate passed on {certificate['n']} images")
    golden = read_golden(folder / GOLDEN)
    _check_said(artifact, golden.said, GOLDEN)
    models = [file for file in card.files if file.endswith(".onnx")]
    if models:
        for name in models:
            inside = metadata_of(folder / name)
            _check_said(artifact, {key: inside.get(f"dspkd.{key}", "null") for key in ("classes", "preprocess")}, name)
        checks.append("classes and preprocessing agree with those inside the model")
    else:
        checks.append(f"classes and preprocessing agree with those in {GOLDEN}")
    try:
        difference = _check_answers(artifact, golden)
        where = "here" if certificate["passed"] else "in what stands in for it here"
        repeated = (
            f"golden answers repeat {where} (largest difference {difference:.1e})" if difference is not None else ""
        )
    except DeviceError as error:
        difference, repeated = None, f"golden answers were not repeated: {error.message}"
    checks.append(repeated or f"golden answers were not repeated: {card.target} does not run here")
    return VerifyReport(folder, "artifact", tuple(checks), difference)


def _check_certificate(artifact: Artifact) -> None:
    """That it did not fail, and that the numbers it carries say so too."""
    certificate, where = artifact.card.certificate, artifact.path / CARD
    if certificate.get("passed") not in (True, None):
        raise VerificationError(
            f"{where}: its certificate failed when it was exported", hint="export again, or do not use it"
        )
    try:
        carries_numbers = certificate if certificate["passed"] else certificate["stand_in"]
        holds = carries_numbers is None or _within_bounds(carries_numbers, artifact.card.precision)
        described = "" if carries_numbers is None else _describe(carries_numbers)
    except (KeyError, TypeError) as error:
        raise VerificationError(f"{where}: its certificate is malformed: {error}", hint="export again") from error
    if not holds:
        raise VerificationError(
            f"{where}: its certificate says passed, but not its numbers: {described}", hint="export again"
        )


def _within_bounds(certificate: dict[str, Any], precision: str) -> bool:
    bound = BOUNDS[precision]
    return bool(
        certificate["n"] > 0
        and certificate["top1_agreement"] >= bound.top1_agreement
        and (bound.max_abs_difference is None or certificate["max_abs_difference"] <= bound.max_abs_difference)
        and certificate["non_inferiority"]["holds"] is True
    )


def _describe(certificate: dict[str, Any]) -> str:
    return ", ".join(f"{key} = {certificate[key]}" for key in ("n", "top1_agreement", "max_abs_difference"))


def _check_said(artifact: Artifact, said: dict[str, str], file: str) -> None:
    """`said`: JSON of classes and preprocessing as `file` has them."""
    own = artifact.card.model_dump(mode="json")
    for field, text in said.items():
        try:
            agrees = json.loads(text) == own[field]
        except ValueError:
            agrees = False
        if not agrees:
            raise VerificationError(
                f"{artifact.path / CARD}: {field} {json.dumps(own[field])} differ from those inside {file}: {text}",
                hint="the manifest belongs to another model: export again",
            )


def _check_answers(artifact: Artifact, golden: Golden) -> float | None:
    """The largest difference, or None if nothing of this artifact can run here."""
    path, size, classes = artifact.path / GOLDEN, artifact.card.preprocess.size, len(artifact.card.classes)
    pixels, answers = golden.pixels, (len(golden.pixels), classes)
    stored = [golden.pytorch] + ([] if golden.deployed is None else [golden.deployed])
    if (
        pixels.dtype != np.uint8
        or not len(pixels)
        or pixels.shape[1:] != (size, size, 3)
        or any(answer.shape != answers for answer in stored)
    ):
        raise VerificationError(
            f"{path}: pixels {pixels.shape} {pixels.dtype} and answers {[a.shape for a in stored]} "
            f"do not fit size {size} and {classes} classes",
            hint="export again",
        )
    differences = [_check_answer(artifact, name, target, golden, answers) for name, target in _runnable(artifact)]
    return max(differences, default=None)


def _runnable(artifact: Artifact) -> list[tuple[str, str]]:
    """(file, target whose runtime takes it) of everything that answers here."""
    card = artifact.card
    if card.certificate["passed"]:
        return [(name, card.target) for name in card.model_files]
    # What an engine will be built from answers in ONNX Runtime, and did so for the certificate.
    stand_in = card.certificate.get("stand_in")
    return [(name, "onnx") for name in stand_in["files"] if name.endswith(".onnx")] if stand_in else []


def _check_answer(artifact: Artifact, name: str, target: str, golden: Golden, answers: tuple[int, int]) -> float:
    bound, file = BOUNDS[artifact.card.precision], artifact.path / name
    model = load_model(target, file)
    try:
        got = model.answer(golden.pixels)
    except DeviceError:
        raise
    except Exception as error:  # each runtime has exceptions of its own, derived from nothing but Exception
        raise VerificationError(f"{file} does not run on {GOLDEN}: {error}", hint="export again") from error
    if got.shape != answers:
        raise VerificationError(f"{file} gives {got.shape} on {GOLDEN}, expected {answers}", hint="export again")
    largest = 0.0
    for origin, answer, allowed in (
        ("pytorch", golden.pytorch, bound.max_abs_difference),
        ("deployed", golden.deployed, bound.golden),
    ):
        if allowed is None or answer is None:
            continue
        difference = float(np.abs(got.astype(np.float64) - answer).max())
        if not difference <= allowed:
            raise VerificationError(
                f"{file} does not repeat its golden answers ({origin}): "
                f"largest difference {difference:.2e}, allowed {allowed:.0e}",
                hint="the file, the runtime or this processor computes something else",
            )
        largest = max(largest, difference)
    return largest
