"""What every run does before its first step: table, split, pixels, and the checks that belong to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dspkd.cleaning import Cleaning
from dspkd.config import DataConfig, RunConfig
from dspkd.data.fingerprints import Progress, duplicate_images
from dspkd.data.pixels import cached_pixels, largest_square, pixel_cache
from dspkd.data.sources import Table, read_table
from dspkd.data.split import PARTS, Split, indices, known_images, load_split, make_split, read_split
from dspkd.errors import DataError
from dspkd.preprocess import Preprocess
from dspkd.protocol import PAPER, caution
from dspkd.student import Student, StudentCard
from dspkd.train.reporter import Reporter

__all__ = ["PreparedData", "new_split", "prepare_data", "run_cleaning", "training_size"]

SPLIT_FILE = "split.json"


def training_size(size: int) -> int:
    """Side of the pixels that random crops are cut from, where the images have it: a quarter more than the network's
    input, so that they stay sharp.
    """
    return -(-size * 5 // 4)


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Table, split and where the pixels lie. `part(name)` gives positions in the table."""

    table: Table
    split: Split
    cache_dir: Path | None
    _sides: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What `training_side` has found: it may have to look into every image."""

    def part(self, name: str) -> np.ndarray:
        return indices(self.split, self.table, name)

    def pixels(self, preprocess: Preprocess, positions: np.ndarray, reporter: Reporter) -> np.ndarray:
        """uint8 (N, size, size, 3) in the table's order, with the images at `positions` as a model is judged on."""
        return cached_pixels(
            self.table, preprocess, positions=positions, cache_dir=self.cache_dir, progress=reporter.progress
        )

    def training_pixels(self, preprocess: Preprocess, reporter: Reporter) -> np.ndarray:
        """uint8 (N, S, S, 3) in the table's order, with the training part, S being `training_side(size)`."""
        return cached_pixels(
            self.table,
            self.training_preprocess(preprocess),
            positions=self.part("train"),
            for_training=True,
            cache_dir=self.cache_dir,
            progress=reporter.progress,
        )

    def training_side(self, size: int) -> int:
        """Side of the pixels that views are cut from: `training_size(size)`, or that of the largest training image if
        all are smaller. Enlarged, they would take more space and more time and be no sharper.
        """
        if size not in self._sides:
            self._sides[size] = largest_square(self.table, self.part("train"), training_size(size))
        return self._sides[size]

    def training_preprocess(self, preprocess: Preprocess) -> Preprocess:
        """How training pixels are made: as those that judge, but of `training_side`."""
        return preprocess.model_copy(update={"size": self.training_side(preprocess.size)})

    def training_file(self, preprocess: Preprocess) -> Path:
        """Where `training_pixels` lie."""
        wanted = self.training_preprocess(preprocess)
        return pixel_cache(self.table, wanted, for_training=True, cache_dir=self.cache_dir).path

    def decode(self, preprocess: Preprocess, reporter: Reporter) -> tuple[np.ndarray, np.ndarray]:
        """Everything that a run with this preprocessing reads, once for all runs: `training_pixels` and the pixels that
        judge.
        """
        training = self.training_pixels(preprocess, reporter)
        judging = np.concatenate([self.part("val"), self.part("test")])
        return training, self.pixels(preprocess, judging, reporter)

    def groups(self, positions: np.ndarray) -> list[str]:
        return [self.table.samples[int(i)].group for i in positions]

    def image_ids(self, positions: np.ndarray | None = None) -> list[str]:
        chosen = range(len(self.table)) if positions is None else positions
        return [self.table.samples[int(i)].image_id for i in chosen]

    def describe(self) -> dict[str, Any]:
        described = {
            "root": str(self.table.root),
            "table_sha256": self.table.sha256,
            "split_sha256": self.split.sha256,
            "images": {name: len(getattr(self.split, name)) for name in PARTS},
        }
        if self.split.leaks:
            described["protocol"] = PAPER
            described["leak"] = {part: len(self.known_images(part)) for part in ("val", "test")}
        return described

    def known_images(self, part: str) -> list[str]:
        """Ids of the images of a part that show a lesion of the training part: none, unless the split leaks."""
        return known_images(self.table, self.split.train, getattr(self.split, part))

    @property
    def caution(self) -> str | None:
        return caution(self.describe())


def run_cleaning(config: RunConfig, teacher: StudentCard | None) -> Cleaning:
    """The cleaning that a run's recipe asks for, and its teacher's where it does not say."""
    if config.preprocess is not None:
        return config.preprocess
    return teacher.preprocess.cleaning if teacher else Cleaning()


def prepare_data(
    config: DataConfig,
    *,
    classes: Sequence[str] | None,
    teacher: Student | None,
    stored: Path | None,
    progress: Progress | None = None,
) -> PreparedData:
    """Read the table, and take the split from (in this order) `stored`, the config, the teacher's folder, or make it.

    Raises DataError if the teacher was fitted on another split of these images: the student's test set might then
    contain what the teacher has learned by heart.
    """
    table = read_table(config.root, classes=classes)
    teacher_split = teacher.path / SPLIT_FILE if teacher else None
    if stored is not None and stored.is_file():
        split = load_split(stored, table)
    elif config.split is not None:
        split = load_split(config.split, table)
    elif teacher_split is not None and teacher_split.is_file() and teacher is not None and _same_table(teacher, table):
        split = load_split(teacher_split, table)
    else:
        split = new_split(table, config, progress=progress)
    if teacher is not None and _same_table(teacher, table) and teacher.card.data.get("split_sha256") != split.sha256:
        raise DataError(
            f"teacher {teacher.path} was fitted on another split of {table.root}",
            hint="leave the split out to reuse the teacher's, or fit the teacher on this split",
        )
    if teacher_split is not None and teacher_split.is_file():
        _refuse_what_the_teacher_knows(teacher_split, split, table)
    return PreparedData(table=table, split=split, cache_dir=config.cache_dir)


def new_split(table: Table, config: DataConfig, *, progress: Progress | None = None) -> Split:
    """The split that `config` describes, whatever was stored before."""
    duplicates: list[tuple[str, str]] = []
    if config.join_duplicates and config.protocol != PAPER:
        duplicates = duplicate_images(table, cache_dir=config.cache_dir, progress=progress)
    return make_split(
        table,
        seed=config.split_seed,
        val=config.val_fraction,
        test=config.test_fraction,
        folds=config.folds,
        fold=config.fold,
        by_column=config.own_split,
        duplicates=duplicates,
        protocol=config.protocol,
    )


def _refuse_what_the_teacher_knows(teacher_split: Path, split: Split, table: Table) -> None:
    """Also where the student's images are not quite the teacher's: no lesion that the teacher learned may judge."""
    stored = read_split(teacher_split)
    if split.leaks and stored["split_sha256"] == split.sha256:
        return  # The same leak for both networks, which everything made with it says.
    known = known_images(table, stored["train"], (*split.val, *split.test))
    if known:
        raise DataError(
            f"{len(known)} images of the validation and test part show lesions that the teacher learned from, "
            f"{known[0]} among them ({teacher_split})",
            hint="use the images and the split that the teacher was fitted on, or leave out those that it knows",
        )


def _same_table(teacher: Student, table: Table) -> bool:
    return bool(teacher.card.data.get("table_sha256") == table.sha256)
