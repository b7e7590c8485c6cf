"""One epoch of one stage."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dspkd.config import StageConfig
from dspkd.data.views import ViewLoader
from dspkd.errors import DspkdError
from dspkd.train.processes import gathered, process_count
from dspkd.train.reporter import Reporter
from dspkd.train.schedule import learning_rate
from dspkd.train.teacher_answers import TeacherAnswers

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["train_epoch"]


def train_epoch(
    stage: StageConfig,
    epoch: int,
    task: Any,
    optimizer: Any,
    loader: ViewLoader,
    *,
    fabric: Fabric,
    reporter: Reporter,
    answers: TeacherAnswers | None = None,
) -> dict[str, Any]:
    """One pass over `loader`. `task` and `optimizer` come from `fabric.setup`; with `answers` the teacher is not asked
    what is known. `epoch` counts from 0 within the stage.

    Returns the means over all images and processes (`train_loss`, and every other loss under `terms`), the last
    learning rate and the images per second of all processes together. Raises DspkdError when the loss is no longer
    finite.
    """
    task.train()
    totals: dict[str, torch.Tensor] = {}
    steps, seen, started = len(loader), 0, time.perf_counter()
    rate = 0.0
    for step, batch in enumerate(loader):
        rate = learning_rate(epoch * steps + step, steps, stage.epochs, stage.optimizer)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        known = answers.of(batch) if answers is not None else None
        losses = task(batch.pixels, batch.labels, (epoch * steps + step) / (stage.epochs * steps), known)
        fabric.backward(losses["loss"])
        if stage.optimizer.gradient_clip is not None:
            # A check here would wait for the device; the loss tells of it too.
            fabric.clip_gradients(task, optimizer, max_norm=stage.optimizer.gradient_clip, error_if_nonfinite=False)
        optimizer.step()
        for name, value in losses.items():
            totals[name] = totals[name] + value.detach() if name in totals else value.detach()
        seen += len(batch.labels) * process_count()
        # Reading a loss waits for the device, so it is not done at every step.
        if step % 10 == 9 or step == steps - 1:
            values = {name: value / (step + 1) for name, value in _over_processes(totals).items()}
            if not math.isfinite(values["loss"]):
                raise DspkdError(
                    f"the loss of stage {stage.method} became {values['loss']} in epoch {epoch + 1}",
                    hint="lower the learning rate with --lr, or set gradient_clip",
                )
            speed = {"images/s": seen / (time.perf_counter() - started)}
            reporter.step(stage.method, epoch + 1, stage.epochs, step + 1, steps, {**values, **speed})
    return {
        "train_loss": values["loss"],
        "terms": {name: value for name, value in values.items() if name != "loss"},
        "lr": rate,
        "images_per_s": seen / (time.perf_counter() - started),
    }


def _over_processes(totals: dict[str, torch.Tensor]) -> dict[str, float]:
    """Means: all processes have the same number of images."""
    own = np.array([[float(total) for total in totals.values()]])
    return dict(zip(totals, gathered(own).mean(0).tolist(), strict=True))
