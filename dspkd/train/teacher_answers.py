"""A frozen teacher's answers for the batches of a stage: read where they are stored, asked for where they are not."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from filelock import Timeout
from torch import Tensor

from dspkd.config import RunConfig, StageConfig
from dspkd.data.views import Batch, TrainingViews
from dspkd.errors import OutputError
from dspkd.fileio import canonical_json, sha256_bytes
from dspkd.student import Student
from dspkd.train.draws import Draws, most_draws
from dspkd.train.processes import gathered
from dspkd.train.reporter import Reporter
from dspkd.train.task import StageTask
from dspkd.train.teacher_cache import Slots, TeacherCache, cache_identity

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["TeacherAnswers", "answers_of_stage"]

# What was asked for goes to the disk in portions: after so many seconds, or when there is so much of it.
FLUSH_SECONDS, FLUSH_BYTES = 20.0, 256 << 20


class TeacherAnswers:
    """`ask` gives the quantities of pixels (B, 3, S, S); `shapes` has the shape of each for one image.

    With `whole_batches` a batch of which anything is missing is asked for as a whole: the same rounding as without a
    cache. Otherwise only what is missing is, which pays where draws repeat in part.
    """

    def __init__(
        self,
        cache: TeacherCache,
        ask: Callable[[Tensor], Mapping[str, Tensor]],
        shapes: Mapping[str, tuple[int, ...]],
        reporter: Reporter,
        *,
        whole_batches: bool,
    ) -> None:
        self.cache, self.ask, self.shapes, self.reporter = cache, ask, shapes, reporter
        self.whole_batches = whole_batches
        self.asked = self.read = 0
        """Images of which the teacher was asked, and those that it was not."""
        self._pending: list[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]] = []
        self._pending_bytes, self._flushed = 0, time.monotonic()
        self._storing = True

    def of(self, batch: Batch) -> dict[str, Tensor]:
        """Every quantity, float32 (B, ...) on the batch's device, rounded to the cache's number format."""
        found, present = {}, np.ones(len(batch.positions), bool)
        for name, shape in self.shapes.items():
            found[name], there = self.cache.read(name, shape, batch.positions, batch.views)
            present &= there
        missing = np.flatnonzero(~present)
        if len(missing) and self.whole_batches:
            missing = np.arange(len(present))
        self.asked += len(missing)
        self.read += len(present) - len(missing)
        if len(missing):
            self._fill(found, batch, missing)
        return {name: values.to(batch.pixels.device, non_blocking=True) for name, values in found.items()}

    def _fill(self, found: dict[str, Tensor], batch: Batch, missing: np.ndarray) -> None:
        rows = torch.from_numpy(missing)
        whole = len(missing) == len(batch.positions)
        answers = self.ask(batch.pixels if whole else batch.pixels[rows.to(batch.pixels.device)])
        rounded = {name: answers[name].float().cpu().numpy().astype(self.cache.dtype) for name in self.shapes}
        for name, values in rounded.items():
            found[name][rows] = torch.from_numpy(values.astype(np.float32))
        if self._storing:
            self._pending.append((batch.positions[missing], batch.views[missing], rounded))
            self._pending_bytes += sum(values.nbytes for values in rounded.values())
            if self._pending_bytes > FLUSH_BYTES or time.monotonic() - self._flushed > FLUSH_SECONDS:
                self.flush()

    def flush(self) -> None:
        """Store what was asked for. If that fails (a full disk), say so once and go on without storing."""
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        self._flushed = time.monotonic()
        if not pending:
            return
        positions, views = (np.concatenate([part[k] for part in pending]) for k in (0, 1))
        try:
            for name in self.shapes:
                values = np.concatenate([answers[name] for _, _, answers in pending])
                self.cache.write(name, positions, views, values)
        except (OSError, OutputError, Timeout) as error:
            self._storing = False
            self.reporter.message(
                f"warning: teacher cache {self.cache.folder} cannot be written ({error}); the teacher's further "
                "answers are not stored"
            )

    def report(self) -> None:
        """How much was asked and read, of all processes together. All must call it."""
        asked, read, damaged = gathered(np.array([[self.asked, self.read, self.cache.damaged]])).sum(0)
        self.reporter.message(f"teacher: asked {asked} times, {read} answers read from the cache")
        if damaged:
            self.reporter.message(f"warning: {damaged} damaged blocks of the cache were made again")


def answers_of_stage(
    config: RunConfig,
    stage: StageConfig,
    task: StageTask,
    teacher: Student,
    views: TrainingViews,
    draws: Draws,
    *,
    pixels: Path,
    fabric: Fabric,
    reporter: Reporter,
) -> TeacherAnswers | None:
    """The answers of `teacher` to everything that `stage` will show, stored as `config.teacher_cache` says.

    `pixels` is the file that the views are cut from. None, with a message, where the method cannot take stored answers
    or where they would take more room than allowed: the stage then asks at every step.
    """
    if task.method.teacher_reads is None:
        reporter.message(f"{stage.method}: the teacher's answers cannot be stored for this method")
        return None

    def ask(batch: Tensor) -> dict[str, Tensor]:
        with fabric.autocast():
            return task.ask_teacher(batch)

    blank = torch.zeros((1, 3, views.size, views.size), dtype=torch.uint8, device=views.device)
    shapes = {quantity: tuple(value.shape[1:]) for quantity, value in ask(blank).items()}
    settings, augment = config.teacher_cache, config.augment
    cache = _opened(config, teacher, views, Slots.of(most_draws(draws)), pixels)
    wanted = min(stage.epochs, augment.views or stage.epochs)
    size = wanted * sum(cache.file_bytes(shape) for shape in shapes.values())
    size += cache.stored_bytes(without=frozenset(shapes))
    # Another run may be filling the same folder, and all processes must decide alike.
    too_much = int(gathered(np.array([size if size > settings.max_gib * 2**30 else 0])).max())
    if too_much:
        reporter.message(
            f"{stage.method}: not cached, the teacher's answers for {wanted} views would take "
            f"{too_much / 2**30:.1f} GiB (teacher_cache.max_gib is {settings.max_gib:g}; --views N takes fewer)"
        )
        return None
    return TeacherAnswers(cache, ask, shapes, reporter, whole_batches=augment.views is None and augment.seed is None)


def _opened(config: RunConfig, teacher: Student, views: TrainingViews, slots: Slots, pixels: Path) -> TeacherCache:
    where, dtype = config.teacher_cache.where, config.teacher_cache.dtype
    identity = cache_identity(views, teacher, slots, pixels=pixels.stem, dtype=dtype, precision=config.precision)
    folder = Path(where)
    if where == "auto":
        folder = pixels.parent / f"teacher-{sha256_bytes(canonical_json(identity))[:20]}"
    return TeacherCache(folder, identity, slots, dtype=dtype)
