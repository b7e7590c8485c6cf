"""`dspkd export` and `dspkd verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from dspkd.cli.common import print_json, reporting, say
from dspkd.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from dspkd.data.sources import Table
    from dspkd.evaluate import Classifier
    from dspkd.student import Student
    from dspkd.train.reporter import Reporter
    from dspkd_export.calibration import Calibration
    from dspkd_export.certificate import Images

JSON = typer.Option(False, "--json", help="Print JSON, and nothing else, on stdout.")


def export(
    run: Path = typer.Argument(..., help="A run or student folder."),
    target: str = typer.Option(
        "onnx,executorch",
        "--target",
        help="Targets, with commas: onnx, executorch (the CPU, XNNPACK), litert (.tflite), tensorrt, or "
        "executorch-BACKEND for another processor: vulkan, coreml, openvino, ethos-u55-128, ethos-u55-256, "
        "ethos-u65-256, ethos-u85-256.",
    ),
    precision: str = typer.Option("fp32", "--precision", help="Precisions, with commas: fp32, fp16, int8."),
    out: Path = typer.Option(Path("artifacts"), "--out", help="Artifacts are written to OUT/TARGET-PRECISION."),
    data: Path | None = typer.Option(None, "--data", help="Where the run's images lie now. [default: where they lay]"),
    calibration_images: int = typer.Option(
        256, "--calibration-images", min=1, help="int8: images of the training part, evenly over the classes."
    ),
    margin: float = typer.Option(
        0.01, "--margin", min=0.0, max=1.0, help="Balanced accuracy that an artifact may lose against PyTorch."
    ),
    rewrite: bool = typer.Option(
        True, "--rewrite/--no-rewrite", help="Compile the exact, faster form of the network, or the network as it is."
    ),
    input_: str = typer.Option(
        "float32",
        "--input",
        help="float32: NCHW in [0, 1], for litert NHWC. uint8: NHWC bytes, all preprocessing after the resize inside.",
    ),
    temperature: str = typer.Option(
        "1", "--temperature", help="Divide the logits by it before the softmax; fit: by what suits the validation part."
    ),
    device: str = typer.Option(
        "local",
        "--device",
        help="tensorrt: where the engine is built and certified: local or ssh://[user@]host[:port].",
    ),
    as_json: bool = JSON,
) -> None:
    """Compile a student, and prove over its whole validation part that it gives the same answers on the target's
    runtime.

    Needs the run folder (with split.json) and the images it was trained on. Writes one artifact folder for each
    target and precision: model file, golden pictures, artifact.json with the certificate. Exit code 3 if a
    certificate fails.
    """
    from dspkd.student import load_student
    from dspkd_export import TARGETS, check_request, export_student

    targets, precisions = _listed(target), _listed(precision)
    if input_ not in ("float32", "uint8"):
        raise UsageError(f"unknown --input {input_!r}", hint="float32 or uint8")
    divisor = _temperature(temperature)
    check_request(targets, precisions, device)
    student = load_student(run)
    with reporting() as reporter:
        artifacts = export_student(
            run,
            targets=targets,
            precisions=precisions,
            out=out,
            images=validation_images(student, data, reporter),
            calibration=training_images(student, data, calibration_images, reporter) if "int8" in precisions else None,
            rewrite=rewrite,
            margin=margin,
            device=device,
            takes_bytes=input_ == "uint8",
            temperature=divisor,
            progress=reporter.progress,
        )
    if as_json:
        print_json([{"path": str(a.path), **a.card.model_dump(mode="json")} for a in artifacts])
        return
    for artifact in artifacts:
        certificate = artifact.card.certificate
        size = artifact.card.files[artifact.card.model_file].bytes / 1e6
        if certificate["passed"] is None:
            say(f"{artifact.path}: {size:.2f} MB, not certified: {certificate['not_run']}")
            if certificate["stand_in"]:
                say(f"  in its place: {_summary(certificate['stand_in'])}")
        else:
            say(f"{artifact.path}: {size:.2f} MB, {_summary(certificate)}")
    if student.card.quantised:
        for artifact in artifacts:
            if artifact.card.precision == "int8" and not artifact.card.details.get("trained_int8"):
                say(f"{artifact.path}: calibrated; it does not take the student's trained int8 weights")
    for name in targets:
        for missing in (p for p in precisions if p not in TARGETS[name].precisions):
            say(f"skipped: {name} has no {missing}")
    if (cleaning := student.card.preprocess.cleaning).is_on:
        say(f"not in the models: {cleaning}; who gives them pictures does that first (export/preprocessing.md)")
    if student.card.caution:
        say(student.card.caution)
    runnable = [str(a.path) for a in artifacts if a.card.certificate["passed"]]
    if runnable:
        say(f"next: dspkd bench {' '.join(runnable)} --student {run}")


def _temperature(text: str) -> float | Literal["fit"]:
    if text == "fit":
        return "fit"
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.05 <= value <= 20.0:
        raise UsageError(f"--temperature {text!r} is no number from 0.05 to 20", hint="give a number, or fit")
    return value


def _summary(certificate: dict[str, Any]) -> str:
    balanced = certificate["paired"]["metrics"]["balanced_accuracy"]
    low, high = balanced["interval"]
    return (
        f"top-1 agreement {certificate['top1_agreement']:.2%} on {certificate['n']} images, "
        f"largest difference {certificate['max_abs_difference']:.1e}, balanced accuracy "
        f"{balanced['deployed']:.3f} ({balanced['difference']:+.3f} [{low:+.3f}, {high:+.3f}]; "
        f"{certificate['runtime']})"
    )


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def validation_images(student: Student, data: Path | None, reporter: Reporter) -> Images:
    """The validation part of the student's own split. DataError if the images are gone or are no longer the same."""
    from dspkd_export.certificate import Images

    table, pixels, positions = _part(student, data, "val", reporter)
    return Images(
        pixels[positions],
        table.labels[positions],
        [table.samples[int(i)].image_id for i in positions],
        [table.samples[int(i)].group for i in positions],
        "the whole validation part",
    )


def training_images(student: Student, data: Path | None, count: int, reporter: Reporter) -> Calibration:
    """`count` images of the training part of the student's own split, evenly over the classes."""
    from dspkd_export.calibration import Calibration, stratified_choice

    table, pixels, positions = _part(student, data, "train", reporter)
    chosen = positions[stratified_choice(table.labels[positions], count)]
    return Calibration(pixels[chosen], [table.samples[int(i)].image_id for i in chosen])


def _part(student: Student, data: Path | None, part: str, reporter: Reporter) -> tuple[Table, np.ndarray, np.ndarray]:
    """The student's images, their pixels, and the positions of one part of its split."""
    from dspkd.data.pixels import cached_pixels
    from dspkd.data.sources import read_table
    from dspkd.data.split import indices, load_split

    root = data or Path(student.card.data.get("root", ""))
    split = student.path / "split.json"
    if not split.is_file():
        raise DataError(f"{split} is missing: the split is not known", hint="export from the run folder itself")
    table = read_table(root, classes=student.card.classes)
    positions = indices(load_split(split, table), table, part)
    pixels = cached_pixels(table, student.card.preprocess, positions=positions, progress=reporter.progress)
    return table, pixels, positions


def artifact_classifier(folder: Path) -> Classifier:
    """An artifact on its own runtime, as `eval` and `predict` use it."""
    from dspkd.artifact import check_runs_here, load_artifact
    from dspkd.evaluate import Classifier
    from dspkd.protocol import caution
    from dspkd.runtimes import load_model

    artifact = load_artifact(folder)
    check_runs_here(artifact)
    model = load_model(artifact.card.target, artifact.model_path)
    card = artifact.card
    return Classifier(str(folder), card.classes, card.preprocess, model.answer, caution(card.source.get("data", {})))


def verify(
    folders: list[Path] = typer.Argument(..., help="Artifact or student folders."),
    as_json: bool = JSON,
) -> None:
    """Check that a folder is what it says: seal, hashes, classes and preprocessing inside the model, golden answers.

    Needs only the folder and the target's runtime; no images. Writes nothing. Exit code 4, naming the file or field, if
    anything differs.
    """
    from dspkd_export import verify as check

    reports = [check(folder) for folder in folders]
    if as_json:
        print_json([report.as_dict() for report in reports])
        return
    for report in reports:
        say(f"{report.path}: ok ({report.kind})")
        for line in report.checks:
            say(f"  {line}")
