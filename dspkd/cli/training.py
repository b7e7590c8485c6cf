"""`dspkd train`, `dspkd distill`, `dspkd demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dspkd.cli.common import headline, print_json, reporting, say
from dspkd.errors import CheckpointError, ConfigError, UsageError

if TYPE_CHECKING:
    from dspkd.student import Student

DATA = typer.Option(
    None,
    "--data",
    help="Labelled images: ISIC 2019, HAM10000 or class folders, a CSV with image,label, or a MedMNIST .npz.",
)
SPLIT = typer.Option(None, "--split", help="A stored split.json to reuse.")
SIZE = typer.Option(None, "--size", help="Side of the network's input in pixels. [default: 224]", min=32)
BATCH = typer.Option(None, "--batch-size", help="Images per step. [default: 64]", min=2)
LR = typer.Option(None, "--lr", help="Peak learning rate; distill: of stage 1, stage 2 has a quarter. [default: 0.01]")
SEED = typer.Option(None, "--seed", help="Seed of weights, order and augmentation. [default: 0]")
DEVICE = typer.Option(None, "--device", help="auto, cpu, cuda or mps. [default: auto]")
PRECISION = typer.Option(None, "--precision", help="32-true, bf16-mixed or 16-mixed. [default: 32-true]")
WORKERS = typer.Option(
    None, "--workers", help="Threads that make views beforehand. The result does not depend on it. [default: 0]", min=0
)
WEIGHTS = typer.Option(None, "--weights", help="Initial weights: .safetensors or a plain state dict.")
PRETRAINED = typer.Option(False, "--pretrained", help="Initial weights from timm or torchvision (needs a network).")
CONFIG = typer.Option(None, "--config", help="A TOML file; flags win over it.")
SET = typer.Option([], "--set", help="Any key of the configuration, e.g. stages.0.epochs=5. Repeatable.")
RESUME = typer.Option(False, "--resume", help="Go on with the run in --out after its last finished epoch.")
OUT = typer.Option(None, "--out", help="Folder of the run.")
JSON = typer.Option(False, "--json", help="Print the result as JSON, and nothing else, on stdout.")


def train(
    model: str = typer.Argument(..., help="A timm or torchvision name: tf_efficientnet_lite0, shufflenet_v2_x1_0, ..."),
    data: Path | None = DATA,
    out: Path | None = OUT,
    weights: Path | None = WEIGHTS,
    pretrained: bool = PRETRAINED,
    epochs: int | None = typer.Option(None, "--epochs", help="Epochs. [default: 100]", min=1),
    size: int | None = SIZE,
    batch_size: int | None = BATCH,
    lr: float | None = LR,
    seed: int | None = SEED,
    split: Path | None = SPLIT,
    device: str | None = DEVICE,
    precision: str | None = PRECISION,
    workers: int | None = WORKERS,
    config: Path | None = CONFIG,
    set_: list[str] = SET,
    resume: bool = RESUME,
    as_json: bool = JSON,
) -> None:
    """Fit MODEL to labels: a teacher, or the student alone.

    Needs labelled images (--data). Writes the run folder --out: model.safetensors, student.json, split.json,
    config.toml, metrics.jsonl, predictions, checkpoints and pictures. The validation part chooses the epoch; the
    test part is used once.
    """
    from dspkd.config import apply_overrides

    values = _base(config, out, resume)
    values["model"] = model
    stages = values.setdefault("stages", [{"method": "cross_entropy", "epochs": 100}])
    # A configuration of another shape is left for the validation to name.
    for stage in (s for s in stages if isinstance(s, dict)) if isinstance(stages, list) else ():
        if epochs is not None:
            stage["epochs"] = epochs
        if lr is not None:
            stage.setdefault("optimizer", {})["lr"] = lr
    _flags(
        values,
        data=data, split=split, workers=workers, out=out, weights=weights, size=size, batch_size=batch_size, seed=seed,
        device=device, precision=precision,
    )  # fmt: skip
    if pretrained:
        values["pretrained"] = True
    values = apply_overrides(values, set_)
    _require_data_and_out(values, resume)
    _carry_out(values, resume=resume, as_json=as_json, origin="train")


def distill(
    data: Path | None = DATA,
    teacher: Path | None = typer.Option(None, "--teacher", help="Folder of a fitted teacher. Its split is reused."),
    student: str | None = typer.Option(
        None, "--student", help="The student's name, with --stage qat its run folder. [default: shufflenet_v2_x1_0]"
    ),
    out: Path | None = OUT,
    stage: str | None = typer.Option(
        None, "--stage", help="qat: one more short stage on a finished student, with the rounding of eight bits."
    ),
    preset: str | None = typer.Option(
        None, "--preset", help="DSP-KD or another method or reading by name; see the README. [default: default]"
    ),
    epochs: int | None = typer.Option(
        None, "--epochs", help="Epochs of the student over all stages together. [default: 240, matched 120]", min=2
    ),
    weights: Path | None = WEIGHTS,
    pretrained: bool = PRETRAINED,
    teacher_cache: str | None = typer.Option(
        None,
        "--teacher-cache",
        help="Store the teacher's answers and read them: off, auto or a folder. [default: off]",
    ),
    views: int | None = typer.Option(
        None,
        "--views",
        help="Show each image in so many views, over and over. [default: new ones in every epoch]",
        min=1,
    ),
    teacher_model: str | None = typer.Option(
        None, "--teacher-model", help="Without --teacher: fit this model first, into OUT/teacher."
    ),
    teacher_weights: Path | None = typer.Option(None, "--teacher-weights", help="Initial weights of --teacher-model."),
    teacher_epochs: int | None = typer.Option(
        None, "--teacher-epochs", help="Epochs of --teacher-model. [default: 100]"
    ),
    size: int | None = SIZE,
    batch_size: int | None = BATCH,
    lr: float | None = LR,
    seed: int | None = SEED,
    split: Path | None = SPLIT,
    device: str | None = DEVICE,
    precision: str | None = PRECISION,
    workers: int | None = WORKERS,
    config: Path | None = CONFIG,
    set_: list[str] = SET,
    resume: bool = RESUME,
    as_json: bool = JSON,
) -> None:
    """Distil a teacher into a student in two stages (DSP-KD): masked features, then normalised logits. --preset names
    other methods.

    Needs labelled images (--data) and a fitted teacher (--teacher, or --teacher-model to fit one first). Writes the run
    folder --out, which is also the student folder that `dspkd export` takes: model.safetensors, student.json,
    split.json, config.toml, metrics.jsonl, predictions, checkpoints and pictures.

    --stage qat takes a finished student (--student FOLDER) through quantisation-aware distillation, with the teacher,
    images and split that it had. --out is the same student with a second set of weights, which int8 exports to onnx and
    executorch then take.
    For students that lose more than the margin when they are only calibrated.
    """
    from dspkd.config import apply_overrides

    if stage is not None:
        _quantisation_aware(
            stage, student, out,
            unusable={"--preset": preset, "--weights": weights, "--size": size, "--split": split, "--config": config,
                      "--teacher-model": teacher_model, "--teacher-weights": teacher_weights,
                      "--teacher-epochs": teacher_epochs, "--device": device, "--precision": precision,
                      "--teacher-cache": teacher_cache, "--views": views,
                      "--set": set_ or None, "--pretrained": pretrained or None},
            resume=resume, as_json=as_json,
            teacher=teacher, data=data, epochs=epochs, lr=lr, batch_size=batch_size, seed=seed, workers=workers,
        )  # fmt: skip
        return
    values = _base(config, out, resume)
    if student is not None or "model" not in values:
        values["model"] = student or "shufflenet_v2_x1_0"
    _flags(
        values,
        data=data, split=split, workers=workers, out=out, weights=weights, size=size, batch_size=batch_size, seed=seed,
        device=device, precision=precision, teacher=teacher, teacher_cache=teacher_cache, views=views,
    )  # fmt: skip
    if pretrained:
        values["pretrained"] = True
    asked = preset is not None or (config is None and (epochs is not None or lr is not None))
    if asked or "stages" not in values:
        from dspkd.presets import preset_stages

        values["stages"] = preset_stages(preset or "default", epochs=epochs, lr=lr)
    elif epochs is not None or lr is not None:
        raise UsageError(
            "--epochs and --lr belong to a preset, but the stages come from the configuration",
            hint="write --set stages.0.epochs=5, or name a --preset",
        )
    # Before the teacher is fitted: --set may name one, and what it says of data or size holds for both networks.
    values = apply_overrides(values, set_)
    _require_data_and_out(values, resume)
    if "teacher" not in values:
        if teacher_model is None:
            raise UsageError("no teacher", hint="give --teacher FOLDER, or --teacher-model NAME to fit one first")
        values["teacher"] = str(_fit_teacher(values, teacher_model, teacher_weights, teacher_epochs))
    _carry_out(values, resume=resume, as_json=as_json, origin="distill")


def _quantisation_aware(
    stage: str,
    student: str | None,
    out: Path | None,
    *,
    unusable: dict[str, Any],
    resume: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    if stage != "qat":
        raise UsageError(f"unknown stage {stage!r}", hint="the one that can be run alone is qat")
    if student is None or out is None:
        raise UsageError(
            "--stage qat needs a finished student and --out", hint="give --student FOLDER and --out FOLDER"
        )
    for flag, value in unusable.items():
        if value is not None:
            raise UsageError(f"{flag} does not go with --stage qat", hint="it goes on from the student as it is")
    from dspkd_export.qat import QatConfig, quantisation_aware_stage

    given = {key: value for key, value in settings.items() if value is not None}
    with reporting() as reporter:
        result = quantisation_aware_stage(
            QatConfig(student=Path(student), out=out, **given), resume=resume, reporter=reporter
        )
    quantised = result.card.quantised or {}
    if as_json:
        print_json({"run": str(result.path), **result.card.model_dump(mode="json")})
        return
    say(f"{result.card.architecture}, eight-bit weights and scales of epoch {quantised['epoch']}")
    for part in ("val", "test"):
        say(f"  {part:5s} {headline(quantised['metrics'][part])} (fake-quantised; float: "
            f"{result.card.metrics[part]['balanced_accuracy']:.3f} balanced)")  # fmt: skip
    say(f"written to {result.path}")
    say(f"next: dspkd export {result.path} --target onnx,executorch --precision int8 --out artifacts/")


def _fit_teacher(values: dict[str, Any], model: str, weights: Path | None, epochs: int | None) -> Path:
    """Fit the teacher that `distill` was not given, into OUT/teacher; a finished or half-finished one is taken
    up again.
    """
    from dspkd.config import parse_run_config
    from dspkd.models import Architecture
    from dspkd.train.run import run

    # What is wrong with the student's part shall not be found out when the teacher has been fitted.
    Architecture(parse_run_config(values, origin="distill").model)
    folder = Path(str(values["out"])) / "teacher"
    own = {k: v for k, v in values.items() if k not in ("stages", "teacher", "weights", "pretrained", "teacher_cache")}
    own |= {"model": model, "out": str(folder), "stages": [{"method": "cross_entropy", "epochs": epochs or 100}]}
    if weights is not None:
        own["weights"] = str(weights)
    with reporting() as reporter:
        run(parse_run_config(own, origin="teacher"), resume=(folder / "config.toml").exists(), reporter=reporter)
    return folder


def _base(config: Path | None, out: Path | None, resume: bool) -> dict[str, Any]:
    """The values under the flags: the TOML file, or, on a resume without one, what the run itself has stored."""
    if config is not None:
        from dspkd.config import load_toml

        return load_toml(config)
    if resume:
        from dspkd.train.stored_config import CONFIG_FILE, read_run_config

        if out is None:
            raise UsageError("--resume needs --out or --config", hint="name the folder of the run")
        if (out / CONFIG_FILE).is_file():
            return read_run_config(out)
    return {}


# Flags whose key lies in a table of the configuration.
_IN_TABLES = {
    "data": ("data", "root"),
    "split": ("data", "split"),
    "workers": ("data", "workers"),
    "teacher_cache": ("teacher_cache", "where"),
    "views": ("augment", "views"),
}


def _flags(values: dict[str, Any], **flags: Any) -> None:
    for key, value in flags.items():
        if value is None:
            continue
        plain = str(value) if isinstance(value, Path) else value
        if key in _IN_TABLES:
            table, name = _IN_TABLES[key]
            _table(values, table)[name] = plain
        else:
            values[key] = plain


def _table(values: dict[str, Any], name: str) -> dict[str, Any]:
    table = values.setdefault(name, {})
    if not isinstance(table, dict):
        example = 'root = "FOLDER"' if name == "data" else "its keys"
        raise ConfigError(f"{name} is {table!r}, expected a table", hint=f"write [{name}] and under it {example}")
    return table


def _require_data_and_out(values: dict[str, Any], resume: bool) -> None:
    if "out" not in values:
        raise UsageError("no --out", hint="give the folder that the run shall be written to")
    if "root" not in _table(values, "data"):
        if resume:
            raise CheckpointError(
                f"{values['out']} holds no run to go on with: config.toml is missing",
                hint="check --out, or give --data to start one",
            )
        raise UsageError("no data", hint="give --data FOLDER, or data.root in --config")


def _carry_out(values: dict[str, Any], *, resume: bool, as_json: bool, origin: str) -> None:
    from dspkd.config import parse_run_config
    from dspkd.train.processes import is_first_process
    from dspkd.train.run import run

    with reporting() as reporter:
        student = run(parse_run_config(values, origin=origin), resume=resume, reporter=reporter)
    if is_first_process():
        _show(student, as_json)


def _show(student: Student, as_json: bool) -> None:
    card = student.card
    if as_json:
        print_json({"run": str(student.path), **card.model_dump(mode="json")})
        return
    say(
        f"{card.architecture}, {len(card.classes)} classes, epoch {card.metrics['selected']['epoch']} of the last stage"
    )
    for part in ("val", "test"):
        say(f"  {part:5s} {headline(card.metrics[part])}")
    if card.caution:
        say(f"  {card.caution}")
    say(f"written to {student.path}")
    say(f"next: dspkd export {student.path} --target onnx,executorch --out artifacts/")


def demo(
    out: Path = typer.Option(Path("demo"), "--out", help="Folder that everything is written to."),
    seed: int = typer.Option(0, "--seed", help="Seed of the synthetic lesions and of the training."),
    resume: bool = RESUME,
) -> None:
    """Everything once, small, offline, on a CPU, ending in a report.

    Needs nothing. Writes --out: a synthetic set of lesions, teacher, student alone, distilled student, artifacts,
    results.json and report.html.
    """
    from dspkd.cli.demo import run_demo

    run_demo(out, seed=seed, resume=resume)
