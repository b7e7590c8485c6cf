"""`dspkd export` and `dspkd verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dspkd.cli.common import print_json, reporting, say
from dspkd.errors import DataError

if TYPE_CHECKING:
    from dspkd.evaluate import Classifier
    from dspkd.student import Student
    from dspkd.train.reporter import Reporter
    from dspkd_export.certificate import Images

JSON = typer.Option(False, "--json", help="Print JSON, and nothing else, on stdout.")


def export(
    run: Path = typer.Argument(..., help="A run or student folder."),
    target: str = typer.Option("onnx,executorch", "--target", help="Targets, with commas: onnx, executorch."),
    precision: str = typer.Option("fp32", "--precision", help="Precisions, with commas: fp32."),
    out: Path = typer.Option(Path("artifacts"), "--out", help="Artifacts are written to OUT/TARGET-PRECISION."),
    data: Path | None = typer.Option(None, "--data", help="Where the run's images lie now. [default: where they lay]"),
    as_json: bool = JSON,
) -> None:
    """Compile a student, and prove over its whole validation part that it gives the same answers on the target's
    runtime.

    Needs the run folder (with split.json) and the images it was trained on. Writes one artifact folder for each
    target and precision: model file, golden pictures, artifact.json with the certificate. Exit code 3 if a
    certificate fails.
    """
    from dspkd.student import load_student
    from dspkd_export import export_student

    targets, precisions = _listed(target), _listed(precision)
    student = load_student(run)
    with reporting() as reporter:
        artifacts = export_student(
            run,
            targets=targets,
            precisions=precisions,
            out=out,
            images=validation_images(student, data, reporter),
            progress=reporter.progress,
        )
    if as_json:
        print_json([{"path": str(a.path), **a.card.model_dump(mode="json")} for a in artifacts])
        return
    for artifact in artifacts:
        certificate = artifact.card.certificate
        size = artifact.card.files[artifact.card.model_file].bytes / 1e6
        say(
            f"{artifact.path}: {size:.2f} MB, top-1 agreement {certificate['top1_agreement']:.2%} "
            f"on {certificate['n']} images, "
            f"largest difference {certificate['max_abs_difference']:.1e} ({certificate['runtime']})"
        )
    say(f"next: dspkd bench {' '.join(str(a.path) for a in artifacts)} --student {run}")


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def validation_images(student: Student, data: Path | None, reporter: Reporter) -> Images:
    """The validation part of the student's own split. DataError if the images are gone or are no longer the same."""
    from dspkd.data.pixels import cached_pixels
    from dspkd.data.sources import read_table
    from dspkd.data.split import indices, load_split
    from dspkd_export.certificate import Images

    root = data or Path(student.card.data.get("root", ""))
    split = student.path / "split.json"
    if not split.is_file():
        raise DataError(
            f"{split} is missing: the validation part is not known", hint="export from the run folder itself"
        )
    table = read_table(root, classes=student.card.classes)
    positions = indices(load_split(split, table), table, "val")
    preprocess = student.card.preprocess
    pixels = cached_pixels(table, preprocess.size, preprocess.interpolation, progress=reporter.progress)
    return Images(
        pixels[positions],
        table.labels[positions],
        [table.samples[int(i)].image_id for i in positions],
        [table.samples[int(i)].group for i in positions],
        "the whole validation part",
    )


def artifact_classifier(folder: Path) -> Classifier:
    """An artifact on its own runtime, as `eval` and `predict` use it."""
    from dspkd.artifact import load_artifact
    from dspkd.evaluate import Classifier
    from dspkd.runtimes import load_model, to_input

    artifact = load_artifact(folder)
    model = load_model(artifact.card.target, artifact.model_path)
    return Classifier(
        str(folder), artifact.card.classes, artifact.card.preprocess, lambda pixels: model.run(to_input(pixels))
    )


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
