"""One run: a network taken through its stages, checkpointed every epoch, tested once at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from dspkd.config import RunConfig, StageConfig, to_toml
from dspkd.data.rand_augment import rare_classes
from dspkd.data.split import save_split
from dspkd.data.views import TrainingViews, ViewLoader, resident
from dspkd.distill import METHODS
from dspkd.errors import CheckpointError, DspkdError, OutputError
from dspkd.fileio import ensure_dir, remove_leftovers, write_text
from dspkd.models import Architecture, check_takes, load_weights, pretrained_preprocess
from dspkd.models.shared_norms import share_batch_statistics
from dspkd.preprocess import Preprocess
from dspkd.student import Student, StudentCard, is_student_dir, load_student, save_student
from dspkd.train.checkpoint import read_checkpoint, write_checkpoint
from dspkd.train.draws import Draws
from dspkd.train.epoch import train_epoch
from dspkd.train.metrics import summarise
from dspkd.train.prepare import SPLIT_FILE, PreparedData, prepare_data, run_cleaning
from dspkd.train.processes import check_divisible, gathered, is_first_process, make_fabric, process_count, rank
from dspkd.train.reporter import Reporter
from dspkd.train.stored_config import CONFIG_FILE, check_same_config, fingerprint, other_config
from dspkd.train.task import StageTask, method_context, predict_probabilities
from dspkd.train.teacher_answers import TeacherAnswers, answers_of_stage

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["run"]

LAST, BEST = Path("checkpoints/last.pt"), Path("checkpoints/best.pt")


def run(config: RunConfig, *, resume: bool = False, reporter: Reporter | None = None) -> Student:
    """Carry out `config` into `config.out`, and return the result as it was stored.

    With `resume` a run that was killed goes on from its last finished epoch to the same weights that it would have
    reached; a finished one is just loaded. Raises OutputError if `out` is taken and `resume` is not given, and
    CheckpointError if it was made with other settings.

    Under `torchrun` all processes call this. They share every batch of `config.batch_size` images, and the first one
    writes and reports.
    """
    reporter = reporter if reporter is not None and is_first_process() else Reporter()
    out = config.out
    if (out / CONFIG_FILE).exists():
        if not resume:
            raise OutputError(
                f"{out} already holds a run", hint="add --resume to go on with it, or choose another --out"
            )
        check_same_config(config)
    if is_student_dir(out) and resume:
        reporter.message(f"{out} is already finished")
        return load_student(out)
    fabric = make_fabric(config.device, config.precision)
    # Only when every process has looked at the folder may the first one write there.
    fabric.barrier()
    folders = (out, (out / LAST).parent)
    new = [folder for folder in folders if not folder.exists()]
    if is_first_process():
        for folder in folders:
            remove_leftovers(ensure_dir(folder))
    try:
        with _deterministic(config.deterministic):
            return _Run(config, fabric, reporter).carry_out(resume)
    except BaseException:
        if is_first_process():
            # A start that failed before anything was written leaves no folder.
            for folder in reversed(new):
                with suppress(OSError):
                    folder.rmdir()
        raise


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    # Warn only: some CUDA kernels have no deterministic form, and a slower promise is no reason to refuse the run.
    torch.use_deterministic_algorithms(wanted or before[0], warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@dataclass(slots=True)
class _Position:
    """How far a run has come: `epoch` epochs of stage `stage` are finished."""

    stage: int = 0
    epoch: int = 0
    best_score: float = -1.0
    best_epoch: int = 0


class _Run:
    def __init__(self, config: RunConfig, fabric: Fabric, reporter: Reporter) -> None:
        self.config, self.fabric, self.reporter = config, fabric, reporter
        self.teacher = load_student(config.teacher) if config.teacher else None
        self.data = self._prepare()
        self.classes = self.data.table.classes
        self.architecture = Architecture(config.model)
        self.preprocess = self._preprocess()
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.history: list[dict[str, Any]] = []
        self.position = _Position()
        self.handed_on: dict[str, torch.Tensor] = {}

    def _prepare(self) -> PreparedData:
        classes = self.teacher.card.classes if self.teacher else None
        return prepare_data(
            self.config.data,
            classes=classes,
            teacher=self.teacher,
            stored=self.config.out / SPLIT_FILE,
            progress=self.reporter.progress,
        )

    def _preprocess(self) -> Preprocess:
        config, teacher = self.config, self.teacher.card if self.teacher else None
        cleaning = run_cleaning(config, teacher)
        if teacher is not None and teacher.preprocess.cleaning != cleaning:
            self.reporter.message(
                f"warning: {config.teacher} was fitted with {teacher.preprocess.cleaning} and is asked here about "
                f"pictures with {cleaning}"
            )
        return pretrained_preprocess(config.model, config.size).model_copy(update={"cleaning": cleaning})

    def carry_out(self, resume: bool) -> Student:
        config, out = self.config, self.config.out
        resumed = read_checkpoint(out / LAST) if resume and (out / LAST).is_file() else None
        if resumed is not None and resumed["fingerprint"] != fingerprint(config):
            raise other_config(config)
        for warning in (*self.data.table.remarks, *self.data.split.warnings, *filter(None, [self.data.caution])):
            self.reporter.message(f"warning: {warning}")
        check_divisible(config.batch_size, len(self.data.part("train")))
        model = self._initial_model(fresh=resumed is None)
        self.train_pixels, self.pixels = self.data.decode(self.preprocess, self.reporter)
        # Only now: a start that fails on an image or on the model must not take the folder.
        if is_first_process() and not (out / CONFIG_FILE).exists():
            save_split(self.data.split, out / SPLIT_FILE)
            write_text(out / CONFIG_FILE, to_toml(config))
        if resumed is not None:
            model.load_state_dict(resumed["student"])
            self.history = json.loads(resumed["history"])
            self.position = _Position(**json.loads(resumed["position"]))
            self.reporter.message(
                f"resuming {out}: stage {self.position.stage + 1}, {self.position.epoch} epochs of it finished"
            )
        first = self.position.stage
        for index in range(first, len(config.stages)):
            self._run_stage(index, model, resumed if index == first else None)
        return self._finish(model)

    def _initial_model(self, *, fresh: bool) -> nn.Module:
        config = self.config
        torch.manual_seed(config.seed)
        model = self.architecture.build(len(self.classes), pretrained=config.pretrained)
        check_takes(model, self.architecture.short_name, size=config.size, num_classes=len(self.classes))
        if config.weights is not None:
            loaded = load_weights(model, config.weights)
            if fresh:
                self.reporter.message(f"{config.weights.name}: {loaded}")
        elif not config.pretrained and fresh:
            self.reporter.message(f"{config.model} starts from random weights")
        model = self._over_all_processes(model)
        return model.to(memory_format=self.memory_format)  # type: ignore[call-overload]

    def _over_all_processes(self, module: nn.Module) -> nn.Module:
        return share_batch_statistics(module, self.fabric.device) if process_count() > 1 else module

    def _run_stage(self, index: int, model: nn.Module, resumed: dict[str, Any] | None) -> None:
        config, stage, fabric = self.config, self.config.stages[index], self.fabric
        method_class = METHODS[stage.method]
        if method_class.needs_teacher and self.teacher is None:
            raise DspkdError(f"stage {index + 1} ({stage.method}) needs a teacher", hint="give --teacher FOLDER")
        # The auxiliary layers start from (seed, stage) alone, whatever ran before and wherever a resume began.
        torch.manual_seed((config.seed + 1) * 1000 + index)
        context = method_context(
            model,
            self.architecture,
            len(self.classes),
            config.size,
            self.teacher,
            maps=method_class.needs_maps,
            class_shares=self._class_shares(),
        )
        settings = method_class.Settings.model_validate(stage.settings)
        method = method_class.build(settings, context)
        if method_class.predecessor(settings) is not None and resumed is None:
            method.inherit(self.handed_on)
        self._over_all_processes(method)
        task = StageTask(
            model,
            self.preprocess,
            method,
            self.teacher,
            memory_format=self.memory_format,
            peer_norms=self._over_all_processes,
        )
        if process_count() > 1 and method.couples_images:
            self.reporter.message(
                f"warning: {stage.method} compares the images of a batch with each other, and each of "
                f"{process_count()} processes does so among its own {config.batch_size // process_count()}"
            )
        trainable = [p for p in task.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(
            trainable,
            lr=stage.optimizer.lr,
            momentum=stage.optimizer.momentum,
            weight_decay=stage.optimizer.weight_decay,
            fused=self._fused_steps(),
        )
        if resumed is None:
            self.position = _Position(stage=index)
        else:
            try:
                task.load_auxiliary_state(resumed["auxiliary"])
            except RuntimeError as error:
                raise CheckpointError(
                    f"the checkpoint in {config.out} has layers of {stage.method} of other shapes than are made now",
                    hint="give that stage the settings that were the default then, or start again in another folder",
                ) from error
        wrapped, wrapped_optimizer = fabric.setup(task, optimizer)
        task.place_teacher(fabric.device)
        if resumed is not None and self.position.epoch < stage.epochs:
            # After the parameters have moved to their device, where the optimizer then puts its momentum too.
            optimizer.load_state_dict(resumed["optimizer"])
            torch.set_rng_state(resumed["rng"])
        train = self.data.part("train")
        labels = self.data.table.labels
        sampler = Draws(
            train, labels, balance=config.data.balance, seed=config.seed,
            views=config.augment.views, batch_size=config.batch_size, rank=rank(), ranks=process_count(),
        )  # fmt: skip
        views = TrainingViews(
            resident(self.train_pixels, fabric.device),
            labels,
            self.data.image_ids(),
            size=config.size,
            seed=config.seed if config.augment.seed is None else config.augment.seed,
            config=config.augment,
            rare=frozenset(rare_classes(labels[train]).tolist()),
            device=fabric.device,
        )
        share = config.batch_size // process_count()
        loader = ViewLoader(views, sampler, batch_size=share, workers=config.data.workers)
        answers = self._answers(stage, task, views, sampler)
        try:
            for epoch in range(self.position.epoch, stage.epochs):
                sampler.epoch = sum(s.epochs for s in config.stages[:index]) + epoch
                record = train_epoch(
                    stage, epoch, wrapped, wrapped_optimizer, loader,
                    fabric=fabric, reporter=self.reporter, answers=answers,
                )  # fmt: skip
                if answers is not None:
                    answers.flush()
                validation = self._evaluate(model, "val", intervals=False)
                record["val"] = {k: validation[k] for k in ("accuracy", "balanced_accuracy", "macro_f1", "loss")}
                self._end_epoch(index, epoch, record, model, task, optimizer)
        finally:
            if answers is not None:
                answers.flush()
            task.close()
        if answers is not None:
            answers.report()
        self.handed_on = {key: value.cpu() for key, value in method.state_dict().items()}
        # The next stage looks at the network on the CPU before it begins.
        model.to("cpu")

    def _fused_steps(self) -> bool:
        """Whether the optimiser passes over the parameters once: the same numbers, in a quarter of the time. In
        16-mixed it would undo the scaling of the gradients itself, and then they cannot be clipped.
        """
        return self.config.precision != "16-mixed" and self.fabric.device.type in ("cpu", "cuda")

    def _answers(
        self, stage: StageConfig, task: StageTask, views: TrainingViews, draws: Draws
    ) -> TeacherAnswers | None:
        """None where the stage asks its teacher at every step."""
        if self.config.teacher_cache.where == "off" or self.teacher is None or not task.method.needs_teacher:
            return None
        return answers_of_stage(
            self.config, stage, task, self.teacher, views, draws,
            pixels=self.data.training_file(self.preprocess), fabric=self.fabric, reporter=self.reporter,
        )  # fmt: skip

    def _class_shares(self) -> tuple[float, ...]:
        """How often `BalancedSampler` draws each class."""
        labels = self.data.table.labels[self.data.part("train")]
        counts = np.bincount(labels, minlength=len(self.classes))
        weights = np.where(counts > 0, counts ** (1.0 - self.config.data.balance), 0.0)
        return tuple(float(share) for share in weights / weights.sum())

    def _evaluate(self, model: nn.Module, part: str, *, intervals: bool) -> dict[str, Any]:
        positions = self.data.part(part)
        mine = np.array_split(positions, process_count())[rank()]
        probabilities = gathered(
            predict_probabilities(model, self.preprocess, self.pixels[mine], device=self.fabric.device)
        )
        labels = self.data.table.labels[positions]
        groups = self.data.groups(positions) if intervals else None
        if intervals and is_first_process():
            self._write_predictions(part, positions, probabilities)
        return summarise(labels, probabilities, self.classes, groups=groups)

    def _write_predictions(self, part: str, positions: np.ndarray, probabilities: np.ndarray) -> None:
        from dspkd.evaluate import predictions_csv

        samples = [self.data.table.samples[int(i)] for i in positions]
        known = self.data.known_images(part) if self.data.split.leaks else None
        text = predictions_csv(samples, probabilities, self.classes, known=known)
        write_text(self.config.out / f"predictions-{part}.csv", text)

    def _end_epoch(
        self,
        index: int,
        epoch: int,
        record: dict[str, Any],
        model: nn.Module,
        task: StageTask,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        stage, position = self.config.stages[index], self.position
        position.epoch = epoch + 1
        score = record["val"]["balanced_accuracy"]
        is_best = score > position.best_score
        if is_best:
            position.best_score, position.best_epoch = score, epoch + 1
        self.history.append(
            {"stage": stage.method, "epoch": epoch + 1, "global_epoch": len(self.history) + 1, **record}
        )
        if is_first_process():
            self._write_epoch(is_best, model, task, optimizer)
        self.fabric.barrier()
        self.reporter.message(
            f"{stage.method} {epoch + 1}/{stage.epochs}  loss {record['train_loss']:.4f}  "
            f"val accuracy {record['val']['accuracy']:.3f}  balanced {score:.3f}  {record['images_per_s']:.0f} images/s"
        )

    def _write_epoch(self, is_best: bool, model: nn.Module, task: StageTask, optimizer: torch.optim.Optimizer) -> None:
        out, position = self.config.out, self.position
        student = {k: v.detach().cpu() for k, v in model.state_dict().items()}
        if is_best:
            write_checkpoint(out / BEST, {"student": student, "stage": position.stage, "epoch": position.epoch})
        write_checkpoint(
            out / LAST,
            {
                "student": student,
                "auxiliary": task.auxiliary_state(),
                "optimizer": optimizer.state_dict(),
                "rng": torch.get_rng_state(),
                "history": json.dumps(self.history),
                "position": json.dumps(
                    {
                        "stage": position.stage,
                        "epoch": position.epoch,
                        "best_score": position.best_score,
                        "best_epoch": position.best_epoch,
                    }
                ),
                "fingerprint": fingerprint(self.config),
            },
        )
        # Rewritten whole from the history in the checkpoint, so that a resume never leaves a line twice.
        write_text(out / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.history))

    def _finish(self, model: nn.Module) -> Student:
        config, out = self.config, self.config.out
        if config.select == "best":
            best = read_checkpoint(out / BEST)
            model.load_state_dict(best["student"])
        model.to(self.fabric.device).eval()
        metrics = {part: self._evaluate(model, part, intervals=True) for part in ("val", "test")}
        metrics["selected"] = {"stage": len(config.stages), "epoch": self._selected_epoch(), "rule": config.select}
        card = StudentCard(
            role=self._role(),
            architecture=self.architecture.name,
            classes=self.classes,
            preprocess=self.preprocess,
            metrics=metrics,
            data=self.data.describe(),
            teacher=self._describe_teacher(),
            config=config.model_dump(mode="json", exclude_none=True),
        )
        if is_first_process():
            self._draw(metrics["test"])
            save_student(out, model, card)
        self.fabric.barrier()
        return load_student(out)

    def _selected_epoch(self) -> int:
        return self.position.best_epoch if self.config.select == "best" else self.config.stages[-1].epochs

    def _role(self) -> Literal["baseline", "student"]:
        distilled = any(METHODS[stage.method].needs_teacher for stage in self.config.stages)
        return "student" if distilled else "baseline"

    def _describe_teacher(self) -> dict[str, Any] | None:
        if self.teacher is None:
            return None
        card = self.teacher.card
        headline = {
            part: {k: card.metrics[part][k] for k in ("n", "accuracy", "balanced_accuracy", "macro_f1")}
            for part in ("val", "test")
            if part in card.metrics
        }
        return {"architecture": card.architecture, "weights_sha256": card.weights_sha256, "metrics": headline}

    def _draw(self, test: dict[str, Any]) -> None:
        from dspkd.figures import confusion_svg, curves_svg

        for name, picture in (
            ("curves.svg", curves_svg({self.architecture.short_name: self.history}, note=self.data.caution)),
            ("confusion.svg", confusion_svg(list(self.classes), test["confusion"], note=self.data.caution)),
        ):
            if picture is None:
                self.reporter.message(f"{name} was not drawn: matplotlib is missing (pip install 'dspkd[report]')")
            else:
                write_text(self.config.out / name, picture)
