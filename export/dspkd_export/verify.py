"""Checking a hand-over folder on any machine: seal, hashes, what the model says of itself, and its golden answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dspkd.artifact import CARD, GOLDEN, Artifact, is_artifact_dir, load_artifact
from dspkd.errors import VerificationError
from dspkd.runtimes import load_model, to_input
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
    checks.append(f"the certificate passed on {card.certificate['n']} images")
    golden = read_golden(folder / GOLDEN)
    _check_said(artifact, golden.said, GOLDEN)
    if card.target == "onnx":
        for name in (file for file in card.files if file.endswith(".onnx")):
            inside = metadata_of(folder / name)
            _check_said(artifact, {key: inside.get(f"dspkd.{key}", "null") for key in ("classes", "preprocess")}, name)
        checks.append("classes and preprocessing agree with those inside the model")
    else:
        checks.append(f"classes and preprocessing agree with those in {GOLDEN}")
    difference = _check_answers(artifact, golden)
    checks.append(f"golden answers repeat here (largest difference {difference:.1e})")
    return VerifyReport(folder, "artifact", tuple(checks), difference)


def _check_certificate(artifact: Artifact) -> None:
    """That it passed, and that the numbers it carries say so too."""
    certificate, where = artifact.card.certificate, artifact.path / CARD
    if certificate.get("passed") is not True:
        raise VerificationError(
            f"{where}: its certificate failed when it was exported", hint="export again, or do not use it"
        )
    bound = BOUNDS[artifact.card.precision]
    try:
        holds = (
            certificate["n"] > 0
            and certificate["top1_agreement"] >= bound.top1_agreement
            and (bound.max_abs_difference is None or certificate["max_abs_difference"] <= bound.max_abs_difference)
            and certificate["non_inferiority"]["holds"] is True
        )
    except (KeyError, TypeError) as error:
        raise VerificationError(f"{where}: its certificate is malformed: {error}", hint="export again") from error
    if not holds:
        raise VerificationError(
            f"{where}: its certificate says passed, but not its numbers: n = {certificate['n']}, "
            f"top1_agreement = {certificate['top1_agreement']}, "
            f"max_abs_difference = {certificate['max_abs_difference']}",
            hint="export again",
        )


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


def _check_answers(artifact: Artifact, golden: Golden) -> float:
    path, size, classes = artifact.path / GOLDEN, artifact.card.preprocess.size, len(artifact.card.classes)
    pixels, answers = golden.pixels, (len(golden.pixels), classes)
    if (
        pixels.dtype != np.uint8
        or not len(pixels)
        or pixels.shape[1:] != (size, size, 3)
        or not (golden.pytorch.shape == golden.deployed.shape == answers)
    ):
        raise VerificationError(
            f"{path}: pixels {pixels.shape} {pixels.dtype} and answers {golden.pytorch.shape}, "
            f"{golden.deployed.shape} do not fit size {size} and {classes} classes",
            hint="export again",
        )
    bound = BOUNDS[artifact.card.precision]
    largest = 0.0
    for name in (file for file in artifact.card.files if file != GOLDEN):
        file = artifact.path / name
        model = load_model(artifact.card.target, file)
        try:
            got = model.run(to_input(pixels))
        except Exception as error:  # each runtime has exceptions of its own, derived from nothing but Exception
            raise VerificationError(f"{file} does not run on {GOLDEN}: {error}", hint="export again") from error
        if got.shape != answers:
            raise VerificationError(f"{file} gives {got.shape} on {GOLDEN}, expected {answers}", hint="export again")
        for origin, answer, allowed in (
            ("pytorch", golden.pytorch, bound.max_abs_difference),
            ("deployed", golden.deployed, bound.golden),
        ):
            if allowed is None:
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
