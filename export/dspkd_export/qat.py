"""Quantisation-aware distillation: one more short stage, in which the student learns with the rounding of eight bits.

The student's deployed form is fake-quantised and trained against its teacher with the loss of stage 2 (NormKD), so that
its weights settle where rounding does no harm. The float weights stay as they were: the result is the same student,
with a second set of weights and their scales beside it, which int8 exports for ONNX Runtime and ExecuTorch's CPU take.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dspkd.config import AugmentConfig, DataConfig, OptimizerConfig
from dspkd.data.views import BalancedSampler, TrainingViews, ViewLoader, pixels_to_tensor
from dspkd.distill import StepInputs
from dspkd.distill.norm_kd import NormKD
from dspkd.errors import CheckpointError, DspkdError, OutputError, UsageError
from dspkd.fileio import canonical_json, ensure_dir, remove_leftovers, sha256_bytes, write_text
from dspkd.student import Student, is_student_dir, load_student, save_quantised, tool_versions
from dspkd.train.checkpoint import read_checkpoint, write_checkpoint
from dspkd.train.metrics import summarise
from dspkd.train.prepare import SPLIT_FILE, PreparedData, prepare_data
from dspkd.train.reporter import Reporter
from dspkd.train.schedule import learning_rate
from dspkd.train.stored_config import CONFIG_FILE
from dspkd.train.task import Normalise
from dspkd_export.deploy_module import deploy_module
from dspkd_export.quantised_graph import QUANTISER, fake_quantised, load_graph_state, observe_ranges

__all__ = ["QatConfig", "quantisation_aware_stage"]

LAST, BEST = Path("checkpoints/qat-last.pt"), Path("checkpoints/qat-best.pt")
BATCH = 64
FIRST = 256


@dataclass(frozen=True, slots=True)
class QatConfig:
    """`student` is the run to begin with, `teacher` the one that it was distilled from. None: as the student's card
    says.
    """

    student: Path
    out: Path
    teacher: Path | None = None
    data: Path | None = None
    epochs: int = 3
    lr: float = 3e-4
    batch_size: int = 64
    seed: int = 0
    workers: int = 0
    cross_entropy_weight: float = 0.1
    distillation_weight: float = 0.9
    t_norm: float = 1.2

    def plain(self) -> dict[str, Any]:
        """The settings as JSON takes them."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items() if v is not None}

    def fingerprint(self, student: Student, teacher: Student) -> str:
        """Hash of everything that decides the result."""
        values = {key: value for key, value in self.plain().items() if key not in ("out", "data", "workers")}
        values |= {"student": student.card.weights_sha256, "teacher": teacher.card.weights_sha256}
        return sha256_bytes(canonical_json(values))


def quantisation_aware_stage(config: QatConfig, *, resume: bool = False, reporter: Reporter | None = None) -> Student:
    """Carry out the stage into `config.out`: a student folder with the same float weights and `int8.safetensors`.

    The epoch is chosen by balanced accuracy on the validation part, as in the other stages; the test part is used once.
    With `resume` a killed stage goes on after its last finished epoch. Raises OutputError if `out` is taken and
    CheckpointError if it was begun with other settings.
    """
    reporter, out = reporter or Reporter(), config.out
    student = load_student(config.student)
    _check_numbers(config)
    if out.resolve() == config.student.resolve():
        raise UsageError(f"--out {out} is the student itself", hint="choose another --out; the student stays as it is")
    teacher = _teacher(config, student)
    if is_student_dir(out) or (out / LAST).is_file():
        if not resume:
            raise OutputError(f"{out} already holds a run", hint="add --resume to go on with it, or choose another")
        _check_same(config, student, teacher)
    if (out / CONFIG_FILE).is_file():
        raise OutputError(f"{out} already holds a run of another kind", hint="choose another --out")
    if is_student_dir(out):
        reporter.message(f"{out} is already finished")
        return load_student(out)
    data = _data(config, student, teacher)
    for folder in (out, (out / LAST).parent):
        remove_leftovers(ensure_dir(folder))
    return _Stage(config, student, teacher, data, reporter).carry_out()


def _check_numbers(config: QatConfig) -> None:
    for flag, value, right in (
        ("--lr", config.lr, 0.0 < config.lr < math.inf),
        ("--seed", config.seed, config.seed >= 0),
        ("--epochs", config.epochs, config.epochs >= 1),
        ("--batch-size", config.batch_size, config.batch_size >= 1),
    ):
        if not right:
            raise UsageError(f"{flag} {value} is too small or no number", hint="leave it out for the default")


def _check_same(config: QatConfig, student: Student, teacher: Student) -> None:
    if read_checkpoint(config.out / LAST)["fingerprint"] != config.fingerprint(student, teacher):
        raise CheckpointError(
            f"{config.out} was started with another configuration",
            hint="resume with the same settings, or start anew in another --out",
        )


def _teacher(config: QatConfig, student: Student) -> Student:
    named = config.teacher or student.card.config.get("teacher")
    if named is None:
        raise UsageError(f"{config.student} was not distilled: no teacher is known", hint="give --teacher FOLDER")
    teacher = load_student(Path(named))
    known = (student.card.teacher or {}).get("weights_sha256")
    if config.teacher is None and teacher.card.weights_sha256 != known:
        raise UsageError(
            f"{named} is no longer the teacher that {config.student} was distilled from",
            hint="name the teacher that you want with --teacher FOLDER",
        )
    return teacher


def _data(config: QatConfig, student: Student, teacher: Student) -> PreparedData:
    """The student's own images and split: its test lesions are as unknown to it as before."""
    values = dict(student.card.config.get("data", {})) | {"split": str(config.student / SPLIT_FILE)}
    if config.data is not None:
        values["root"] = str(config.data)
    return prepare_data(DataConfig.model_validate(values), classes=student.card.classes, teacher=teacher, stored=None)


class _Stage:
    def __init__(
        self, config: QatConfig, student: Student, teacher: Student, data: PreparedData, reporter: Reporter
    ) -> None:
        self.config, self.student, self.teacher, self.data, self.reporter = config, student, teacher, data, reporter
        preprocess = student.card.preprocess
        self.train_pixels = data.training_pixels(preprocess, reporter)
        train = data.part("train")
        # Images of the training part, without augmentation, for the first ranges.
        self.first = train[np.linspace(0, len(train) - 1, min(FIRST, len(train))).astype(int)]
        seen = np.concatenate([self.first, data.part("val"), data.part("test")])
        self.pixels = data.pixels(preprocess, seen, reporter)
        deployed = deploy_module(student)
        deployed.gives_logits = True
        self.graph = fake_quantised(deployed, torch.zeros(2, 3, preprocess.size, preprocess.size))
        self.method = NormKD(config.t_norm, config.cross_entropy_weight, config.distillation_weight)
        self.teacher_normalise = Normalise(teacher.card.preprocess)
        self.optimizer_config = OptimizerConfig(lr=config.lr, min_lr=min(1e-6, config.lr), weight_decay=0.0)
        self.history: list[dict[str, Any]] = []
        self.best = (-1.0, 0)

    def carry_out(self) -> Student:
        config, out = self.config, self.config.out
        torch.manual_seed(config.seed)
        optimizer = torch.optim.SGD(self.graph.parameters(), lr=config.lr, momentum=0.9)
        if (out / LAST).is_file():
            self._resume(optimizer)
        else:
            self._observe_first_ranges()
        train = self.data.part("train")
        recipe = self.student.card.config
        sampler = BalancedSampler(
            train, self.data.table.labels, balance=float(recipe.get("data", {}).get("balance", 1.0)), seed=config.seed
        )
        views = TrainingViews(
            self.train_pixels,
            self.data.table.labels,
            self.data.image_ids(),
            size=self.student.card.preprocess.size,
            seed=config.seed,
            config=AugmentConfig.model_validate(recipe.get("augment", {})),
        )
        loader = ViewLoader(views, sampler, batch_size=config.batch_size, workers=config.workers)
        for epoch in range(len(self.history), config.epochs):
            sampler.epoch = epoch
            # The last epoch sees the ranges that will be deployed.
            observe_ranges(self.graph, epoch < config.epochs - 1 or config.epochs == 1)
            record = self._train_epoch(epoch, loader, optimizer)
            self._end_epoch(epoch, record, optimizer)
        return self._finish()

    @torch.no_grad()
    def _observe_first_ranges(self) -> None:
        """So that training begins with ranges that are right."""
        observe_ranges(self.graph, True)
        for start in range(0, len(self.first), BATCH):
            self.graph(pixels_to_tensor(self.pixels[self.first[start : start + BATCH]]))

    def _resume(self, optimizer: torch.optim.Optimizer) -> None:
        resumed = read_checkpoint(self.config.out / LAST)
        load_graph_state(self.graph, resumed["graph"])
        optimizer.load_state_dict(resumed["optimizer"])
        self.history, self.best = json.loads(resumed["history"]), tuple(json.loads(resumed["best"]))
        torch.set_rng_state(resumed["rng"])
        self.reporter.message(f"resuming {self.config.out}: {len(self.history)} epochs finished")

    def _train_epoch(self, epoch: int, loader: Any, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        config, steps = self.config, len(loader)
        totals: dict[str, float] = {}
        for step, (pixels, labels, *_) in enumerate(loader):
            rate = learning_rate(epoch * steps + step, steps, config.epochs, self.optimizer_config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            images = pixels.float().div(255.0)
            with torch.no_grad():
                teacher_logits = self.teacher.model(self.teacher_normalise(images))
            losses = self.method(StepInputs(labels, self.graph(images), {}, teacher_logits))
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            optimizer.step()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + float(value.detach())
            if not math.isfinite(totals["loss"]):
                raise DspkdError(
                    f"the loss of stage qat became {totals['loss']} in epoch {epoch + 1}",
                    hint="lower the learning rate with --lr",
                )
            self.reporter.step(
                "qat", epoch + 1, config.epochs, step + 1, steps, {k: v / (step + 1) for k, v in totals.items()}
            )
        return {name: value / steps for name, value in totals.items()}

    def _end_epoch(self, epoch: int, record: dict[str, float], optimizer: torch.optim.Optimizer) -> None:
        out = self.config.out
        validation = self._evaluate(self.graph, "val")
        score = validation["balanced_accuracy"]
        state = {k: v.detach().clone() for k, v in self.graph.state_dict().items()}
        if score > self.best[0]:
            self.best = (score, epoch + 1)
            write_checkpoint(out / BEST, {"graph": state})
        loss = record.pop("loss")
        kept = ("accuracy", "balanced_accuracy", "macro_f1", "loss")
        self.history.append(
            {
                "stage": "qat",
                "epoch": epoch + 1,
                "global_epoch": epoch + 1,
                "train_loss": loss,
                "terms": record,
                "val": {key: validation[key] for key in kept},
            }
        )
        write_checkpoint(
            out / LAST,
            {
                "graph": state,
                "optimizer": optimizer.state_dict(),
                "history": json.dumps(self.history),
                "best": json.dumps(self.best),
                "rng": torch.get_rng_state(),
                "fingerprint": self.config.fingerprint(self.student, self.teacher),
            },
        )
        self._write_history()
        self.reporter.message(
            f"qat {epoch + 1}/{self.config.epochs}  loss {loss:.4f}  val balanced accuracy {score:.3f} (fake-quantised)"
        )

    def _write_history(self) -> None:
        write_text(self.config.out / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.history))

    @torch.no_grad()
    def _evaluate(self, graph: nn.Module, part: str, *, intervals: bool = False) -> dict[str, Any]:
        positions = self.data.part(part)
        # A copy, because whatever passes through moves the ranges while they are observed.
        judged = copy.deepcopy(graph)
        observe_ranges(judged, False)
        answers: list[Tensor] = [
            torch.softmax(judged(pixels_to_tensor(self.pixels[positions[start : start + BATCH]])), dim=1)
            for start in range(0, len(positions), BATCH)
        ]
        groups: Sequence[str] | None = self.data.groups(positions) if intervals else None
        probabilities = torch.cat(answers).numpy()
        return summarise(self.data.table.labels[positions], probabilities, self.student.card.classes, groups=groups)

    def _finish(self) -> Student:
        config, out = self.config, self.config.out
        state = read_checkpoint(out / BEST)["graph"]
        load_graph_state(self.graph, state)
        metrics = {part: self._evaluate(self.graph, part, intervals=True) for part in ("val", "test")}
        # Once more: a kill may have come between the last checkpoint and this file.
        self._write_history()
        shutil.copy2(config.student / SPLIT_FILE, out / SPLIT_FILE)
        save_quantised(
            out,
            self.student,
            state,
            {
                "quantiser": QUANTISER,
                "tools": tool_versions() | {name: version(name) for name in ("executorch", "torchao")},
                "metrics": metrics,
                "epoch": self.best[1],
                "config": config.plain(),
                "teacher_weights_sha256": self.teacher.card.weights_sha256,
            },
        )
        return load_student(out)
