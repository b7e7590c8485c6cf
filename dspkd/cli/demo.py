"""`dspkd demo`: the whole way once on synthetic lesions, and a report of whatever came out."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspkd.cli.common import headline, reporting, say
from dspkd.errors import OutputError

if TYPE_CHECKING:
    from dspkd.artifact import Artifact
    from dspkd.student import Student
    from dspkd.train.reporter import Reporter

__all__ = ["run_demo"]

TEACHER, STUDENT = "resnet10t", "shufflenet_v2_x0_5"
SIZE, LESIONS = 96, 1600
TEACHER_EPOCHS, LR = 12, 0.02
STUDENT_EPOCHS = (18, 6)
"""Of stage 1 and stage 2; the student that learns alone gets as many together."""
# Few images to learn from and many to be tested on: that is where a teacher can help, and where it can be seen.
DATA_SETTINGS = {"val_fraction": 0.1, "test_fraction": 0.4}
TUNED = (
    "The recipe was chosen on this very set, so that the gain shows what distillation can do and proves nothing; "
    "benchmarks/results/ has real images."
)
REAL_COMMANDS = """\
dspkd train tf_efficientnet_lite0 --data DIR --weights FILE --size 224 --epochs 20 --out runs/teacher
dspkd distill --data DIR --teacher runs/teacher --size 224 --preset matched --out runs/student
dspkd export runs/student --target onnx,executorch --out artifacts/student
dspkd export runs/teacher --target onnx,executorch --out artifacts/teacher
dspkd verify artifacts/*/*
dspkd bench artifacts/*/* --teacher runs/teacher --student runs/student --threads 1 --out results.json
dspkd report results.json --out report.html"""


def run_demo(out: Path, *, seed: int, resume: bool) -> None:
    """Draw the lesions, fit, distil, export, verify, measure, report; finished steps are kept for `resume`.

    Raises OutputError if `out` already holds something and `resume` is not given.
    """
    if out.exists() and any(out.iterdir()) and not resume:
        raise OutputError(f"{out} is not empty", hint="add --resume to go on there, or choose another --out")
    with reporting() as reporter:
        _Demo(out, seed, reporter).carry_out()


class _Demo:
    def __init__(self, out: Path, seed: int, reporter: Reporter) -> None:
        self.out, self.seed, self.reporter = out, seed, reporter
        self.started = time.monotonic()

    def carry_out(self) -> None:
        from dspkd.data.synthetic import make_synthetic_set

        data = self.out / "data"
        self._say(f"drawing {LESIONS} synthetic lesions, seed {self.seed}")
        if not (data / "GroundTruth.csv").is_file():
            make_synthetic_set(data, lesions=LESIONS, seed=self.seed, progress=self.reporter.progress)
        self._say(f"fitting the teacher, {TEACHER}, for {TEACHER_EPOCHS} epochs")
        smoothed = _cross_entropy(TEACHER_EPOCHS) | {"settings": {"label_smoothing": 0.1}}
        teacher = self._fit("teacher", TEACHER, [smoothed])
        split = {"split": str(teacher.path / "split.json")}
        epochs = sum(STUDENT_EPOCHS)
        self._say(f"the student, {STUDENT}, alone for {epochs} epochs")
        alone = self._fit("alone", STUDENT, [_cross_entropy(epochs)], data_settings=split)
        self._say(f"the same student, distilled for {STUDENT_EPOCHS[0]} + {STUDENT_EPOCHS[1]} epochs")
        distilled = self._fit("student", STUDENT, _dsp_kd(), teacher=teacher.path)
        artifacts = [*self._export(distilled, "student"), *self._export(teacher, "teacher")]
        results = self._bench(artifacts, teacher, distilled)
        report = self._report(results, teacher, [alone, distilled])
        self._summary(teacher, alone, distilled, report)

    def _say(self, text: str) -> None:
        self.reporter.message(f"[{time.monotonic() - self.started:4.0f} s] {text}")

    def _fit(self, name: str, model: str, stages: list[dict[str, Any]], **more: Any) -> Student:
        from dspkd.config import parse_run_config
        from dspkd.train.run import run

        folder = self.out / "runs" / name
        data = {"root": str(self.out / "data"), "cache_dir": str(self.out / "cache"), **DATA_SETTINGS}
        values = {
            "model": model,
            "data": {**data, **more.pop("data_settings", {})},
            "size": SIZE,
            "batch_size": 32,
            "seed": self.seed,
            "device": "cpu",
            "out": str(folder),
            "stages": stages,
            **{key: str(value) for key, value in more.items()},
        }
        config = parse_run_config(values, origin="demo")
        student = run(config, resume=(folder / "config.toml").is_file(), reporter=self.reporter)
        say(f"{name:10s} test {headline(student.card.metrics['test'])}")
        return student

    def _export(self, student: Student, name: str) -> list[Artifact]:
        from dspkd.cli.sharing import validation_images
        from dspkd_export import export_student, verify

        self._say(f"exporting and certifying the {name}")
        artifacts = export_student(
            student.path,
            targets=["onnx", "executorch"],
            precisions=["fp32"],
            out=self.out / "artifacts" / name,
            images=validation_images(student, None, self.reporter),
            progress=self.reporter.progress,
        )
        for artifact in artifacts:
            report, certificate = verify(artifact.path), artifact.card.certificate
            say(
                f"{artifact.path}: top-1 agreement {certificate['top1_agreement']:.1%} on {certificate['n']} "
                f"validation images, verified ({len(report.checks)} checks)"
            )
        return artifacts

    def _bench(self, artifacts: list[Artifact], teacher: Student, student: Student) -> Path:
        from dspkd.fileio import write_json
        from dspkd_bench.bench import BenchConfig, run_bench
        from dspkd_bench.latency import StopRule

        self._say("measuring teacher and student, interleaved")
        artifact_folders = [artifact.path for artifact in artifacts]
        command = [
            "dspkd",
            "bench",
            *map(str, artifact_folders),
            "--teacher",
            str(teacher.path),
            "--student",
            str(student.path),
        ]
        config = BenchConfig(
            folders=[*artifact_folders, student.path],
            teacher=teacher.path,
            stop=StopRule(seconds=12.0, min_rounds=50),
            command=shlex.join(command),
        )
        path = self.out / "results.json"
        write_json(path, run_bench(config, self.reporter.progress))
        return path

    def _report(self, results: Path, teacher: Student, students: list[Student]) -> Path:
        from dataclasses import replace

        from dspkd_bench.report import collect, write_report

        content = collect([results], [teacher.path, *(student.path for student in students)])
        content = replace(
            content,
            title="dspkd demo: a teacher and its student, side by side",
            notes=[
                "Drawn lesions of eight made-up classes, so the accuracies say nothing about patients; sizes, times "
                "and certificates are those of the real networks on this machine. " + TUNED
            ],
            strip_png=self._strip(teacher),
            strip_caption="Above: test images. Middle: the teacher's attention, fused from four levels. Below: the "
            "places that stage 1 hides, which the student has to rebuild.",
            commands=REAL_COMMANDS,
        )
        path = self.out / "report.html"
        write_report(path, content)
        return path

    def _strip(self, teacher: Student) -> bytes:
        """One test image of each class."""
        import numpy as np

        from dspkd.data.pixels import cached_pixels
        from dspkd.data.sources import read_table
        from dspkd.data.split import indices, load_split
        from dspkd.distill.mask_pictures import mask_strip_png

        table = read_table(self.out / "data", classes=teacher.card.classes)
        test = indices(load_split(teacher.path / "split.json", table), table, "test")
        chosen = [int(test[np.flatnonzero(table.labels[test] == k)[0]]) for k in range(len(table.classes))]
        pixels = cached_pixels(table, teacher.card.preprocess, positions=chosen, cache_dir=self.out / "cache")
        return mask_strip_png(teacher, pixels[chosen])

    def _summary(self, teacher: Student, alone: Student, distilled: Student, report: Path) -> None:
        say("")
        say(f"balanced accuracy on {teacher.card.metrics['test']['n']} test images of other lesions (95 % interval):")
        for name, student in (("teacher", teacher), ("student alone", alone), ("student distilled", distilled)):
            test = student.card.metrics["test"]
            low, high = test["intervals"]["balanced_accuracy"]
            say(f"  {name:18s} {test['balanced_accuracy']:.3f} [{low:.3f}, {high:.3f}]")
        say(TUNED)
        say(f"report: {report}   ({time.monotonic() - self.started:.0f} s)")
        say("")
        say("With your own images:")
        for line in REAL_COMMANDS.splitlines():
            say(f"  {line}")


def _cross_entropy(epochs: int) -> dict[str, Any]:
    return {"method": "cross_entropy", "epochs": epochs, "optimizer": {"lr": LR}}


def _dsp_kd() -> list[dict[str, Any]]:
    from dspkd.presets import preset_stages

    first, second = preset_stages(lr=LR)
    return [
        first | {"epochs": STUDENT_EPOCHS[0], "settings": {"generator_width": 128}},
        # Stage 2 is short here; more weight on the labels keeps it from undoing stage 1.
        second | {"epochs": STUDENT_EPOCHS[1], "settings": {"cross_entropy_weight": 0.5, "distillation_weight": 0.5}},
    ]
