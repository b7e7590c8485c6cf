"""A student folder in, artifact folders out: compile, run on the target's runtime, compare, write whole or not
at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dspkd.artifact import GOLDEN, Artifact, ArtifactCard, FileRecord, load_artifact, write_card
from dspkd.devices import open_device
from dspkd.errors import GateError, UsageError
from dspkd.evaluate import student_classifier
from dspkd.fileio import atomic_dir, sha256_file
from dspkd.runtimes import LoadedModel
from dspkd.student import load_student, tool_versions
from dspkd_export.bounds import DEFAULT_MARGIN
from dspkd_export.calibration import Calibration, required_for_int8
from dspkd_export.certificate import Images, certify, not_certified
from dspkd_export.executorch_backends import BACKENDS
from dspkd_export.executorch_target import compile_executorch
from dspkd_export.golden import describe_model
from dspkd_export.job import ExportJob, Target
from dspkd_export.litert_target import compile_litert
from dspkd_export.onnx_target import compile_onnx
from dspkd_export.temperature import fit_temperature, tempered
from dspkd_export.tensorrt_target import compile_tensorrt

__all__ = ["TARGETS", "Target", "check_request", "export_student"]

Progress = Callable[[int, int, str], None]
GOLDEN_IMAGES = 8
PRECISIONS = ("fp32", "fp16", "int8")


ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TARGETS: dict[str, Target] = {
    "onnx": Target(compile_onnx, PRECISIONS, "batch", ONNX_PACKAGES),
    "executorch": Target(compile_executorch, PRECISIONS, 1, ("executorch", "torchao")),
    "tensorrt": Target(compile_tensorrt, PRECISIONS, "batch", ONNX_PACKAGES),
    "litert": Target(compile_litert, PRECISIONS, 1, ("ai-edge-litert",), layout="NHWC"),
    **BACKENDS,
}


def check_request(targets: Sequence[str], precisions: Sequence[str], device: str = "local") -> None:
    """UsageError for an unknown target, precision or kind of device, before anything is read or compiled."""
    if not targets or not precisions:
        raise UsageError("no target or no precision to export", hint=f"choose from {', '.join(TARGETS)}")
    for target in targets:
        if target not in TARGETS:
            raise UsageError(f"unknown target {target!r}", hint=f"choose from {', '.join(TARGETS)}")
        if not set(precisions) & set(TARGETS[target].precisions):
            raise UsageError(
                f"target {target} has no precision {', '.join(precisions)}",
                hint=f"choose from {', '.join(TARGETS[target].precisions)}",
            )
    if device != "local" and "tensorrt" not in targets:
        raise UsageError(f"--device {device} is for tensorrt, which is not among the targets", hint="leave it out")
    for precision in precisions:
        if precision not in PRECISIONS:
            raise UsageError(f"unknown precision {precision!r}", hint=f"choose from {', '.join(PRECISIONS)}")
    if not open_device(device).runs_python:
        raise UsageError(
            f"{device} cannot build TensorRT engines: that takes a Python",
            hint="name a board behind ssh, or export to executorch, which phones run",
        )


def export_student(
    folder: Path,
    *,
    targets: Sequence[str],
    precisions: Sequence[str],
    out: Path,
    images: Images,
    calibration: Calibration | None = None,
    rewrite: bool = True,
    margin: float = DEFAULT_MARGIN,
    device: str = "local",
    takes_bytes: bool = False,
    temperature: float | Literal["fit"] = 1.0,
    progress: Progress | None = None,
) -> list[Artifact]:
    """Export one student for every target and every precision that it has, each into `out/TARGET-PRECISION`, with its
    certificate.

    `images` judge; `calibration` sets the ranges of int8 and must be other images. `rewrite=False` compiles the network
    as its library has it. `device` is where a target that compiles on its device does so. `takes_bytes` makes the input
    uint8 (N, H, W, 3). `temperature` divides the logits; "fit" takes the one that suits `images` best, whose
    calibration error is then better than it will be elsewhere. An existing artifact is replaced only by a complete new
    one. Raises UsageError for an unknown target or precision and for int8 without calibration, and GateError at the end
    if a certificate failed; that artifact is written too, and marked so.
    """
    check_request(targets, precisions, device)
    if "int8" in precisions:
        required_for_int8(calibration)
    if calibration is not None and (seen := set(calibration.image_ids) & set(images.image_ids)):
        raise UsageError(
            f"{len(seen)} images are in the calibration and in the certificate, {min(seen)} among them",
            hint="calibrate on the training part",
        )
    student = load_student(folder)
    fitted = temperature == "fit"
    if temperature == "fit":
        temperature = fit_temperature(images.labels, student_classifier(student).run(images.pixels))
    softmax = {"temperature": temperature} | ({"temperature_fitted_on": images.what} if fitted else {})
    artifacts = []
    for target in targets:
        for precision in (p for p in precisions if p in TARGETS[target].precisions):
            destination = out / f"{target}-{precision}"
            if progress:
                progress(0, 1, f"compiling {destination.name}")
            with atomic_dir(destination) as temporary:
                calibrated = calibration if precision == "int8" else None
                job = ExportJob(student, temporary, precision, rewrite, calibrated, takes_bytes, temperature, device)
                _build(job, target, images, softmax, margin, progress)
            artifacts.append(load_artifact(destination))
    # None: not certified, because the target cannot run here.
    failed = [artifact for artifact in artifacts if artifact.card.certificate["passed"] is False]
    if failed:
        certificate = failed[0].card.certificate
        # Where the target cannot run here, it is its stand-in that failed.
        certificate = certificate.get("stand_in") or certificate
        raise GateError(
            f"{failed[0].path} does not answer as the student does: "
            f"top-1 agreement {certificate['top1_agreement']:.4f}, "
            f"largest difference {certificate['max_abs_difference']:.2e}, balanced accuracy "
            f"{certificate['paired']['metrics']['balanced_accuracy']['difference']:+.4f} "
            f"(bounds {certificate['bounds']})",
            hint="the artifact is marked as failed; see its certificate for the images",
        )
    return artifacts


def _build(
    job: ExportJob,
    target_name: str,
    images: Images,
    softmax: dict[str, Any],
    margin: float,
    progress: Progress | None,
) -> None:
    target, student, folder, precision = TARGETS[target_name], job.student, job.folder, job.precision
    card = student.card
    compiled = target.compile(job)
    details = {"rewrite": job.rewrite, **compiled.details}
    if job.calibration is not None and not compiled.details.get("trained_int8"):
        details["calibration"] = job.calibration.describe()
    untempered = student_classifier(student).run

    def original(pixels: np.ndarray) -> np.ndarray:
        return tempered(untempered(pixels), job.temperature)

    def certificate_of(models: Mapping[str, LoadedModel]) -> dict[str, Any]:
        return certify(original, models, images, card.classes, precision, progress, margin=margin)

    if compiled.loaded:
        certificate = certificate_of(compiled.loaded)
    else:
        certificate = not_certified(compiled.not_run, certificate_of(compiled.stand_in) if compiled.stand_in else None)
    if card.caution:
        certificate["caution"] = card.caution
    chosen = np.linspace(0, len(images) - 1, min(GOLDEN_IMAGES, len(images))).astype(int)
    pixels = np.ascontiguousarray(images.pixels[chosen])
    said = describe_model(card.classes, card.preprocess)
    answering = next(iter((compiled.loaded or compiled.stand_in).values()), None)
    golden: dict[str, Any] = {"pytorch": original(pixels)}
    if answering is not None:
        golden["deployed"] = answering.answer(pixels)
    np.savez_compressed(
        folder / GOLDEN,
        pixels=pixels,
        **golden,
        image_ids=np.array([images.image_ids[i] for i in chosen], dtype=np.str_),
        classes=np.array(said["classes"]),
        preprocess=np.array(said["preprocess"]),
    )
    size, nhwc = card.preprocess.size, job.takes_bytes or target.layout == "NHWC"
    files = {
        path.name: FileRecord(sha256=sha256_file(path), bytes=path.stat().st_size) for path in sorted(folder.iterdir())
    }
    # Not those of a stand-in: the files are not what was judged there.
    for name, record in certificate.get("files", {}).items():
        if name in files:
            record["sha256"] = files[name].sha256
    write_card(
        folder,
        ArtifactCard(
            target=target_name,
            precision=precision,
            model_file=compiled.models[0],
            model_files=compiled.models,
            files=files,
            classes=card.classes,
            preprocess=card.preprocess,
            input={
                "name": "image",
                "shape": [target.batch, size, size, 3] if nhwc else [target.batch, 3, size, size],
                "dtype": job.dtype,
                "layout": "NHWC" if nhwc else "NCHW",
                "range": [0, 255] if job.takes_bytes else [0.0, 1.0],
            },
            output={
                "name": "probabilities",
                "shape": [target.batch, len(card.classes)],
                "dtype": "float32",
                **softmax,
            },
            source={
                "architecture": card.architecture,
                "role": card.role,
                "weights_sha256": card.weights_sha256,
                **(
                    {"int8_weights_sha256": card.quantised["sha256"]}
                    if card.quantised and compiled.details.get("trained_int8")
                    else {}
                ),
                "data": {k: v for k, v in card.data.items() if k != "root"},
                "test": {
                    k: v for k, v in card.metrics.get("test", {}).items() if k in ("n", "accuracy", "balanced_accuracy")
                },
            },
            tools=tool_versions() | {name: _version(name) for name in target.packages},
            details=details,
            certificate=certificate,
        ),
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
