"""Changed copies of pictures of rare classes, written out as files: the paper's way to balance (section 4.1).

Training has the same operations online (`augment.rand_augment`), where they cost no space and are new in every epoch.
Files are for other programs, and for repeating what the paper does: it balances first and divides afterwards.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from dspkd.data.rand_augment import rand_augment
from dspkd.data.split import PARTS, Split, shuffle_key
from dspkd.data.table import Sample, Table
from dspkd.data.views import view_numbers
from dspkd.errors import DataError, OutputError
from dspkd.fileio import atomic_dir
from dspkd.npz_images import picture_of
from dspkd.preprocess import load_rgb, resize_square

__all__ = ["Copies", "copies_wanted", "write_balanced"]

TABLE = "images.csv"
COLUMNS = ("image", "label", "lesion_id", "source", "split", "copy_of")
Target = Literal["mean", "max"]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Copies:
    """What `write_balanced` wrote."""

    table: Path
    pictures: int
    copies: dict[str, int]
    """Per class."""


def copies_wanted(counts: Sequence[int], target: Target) -> list[int]:
    """How many copies each class needs to have as many pictures as the average (mean) or the largest class."""
    numbers = np.array(counts)
    present = numbers[numbers > 0]
    goal = round(float(present.mean())) if target == "mean" else int(present.max())
    return [max(0, goal - int(n)) if n else 0 for n in numbers]


def write_balanced(
    table: Table,
    out: Path,
    *,
    split: Split | None,
    seed: int = 0,
    target: Target = "mean",
    magnitude: float = 0.3,
    progress: Progress | None = None,
) -> Copies:
    """Write OUT/images and OUT/images.csv: every picture as it is, and RandAugment copies of those of rare classes.

    With a `split` only pictures of its training part are copied, and the column `split` keeps its parts. Without one,
    everything is copied, as in the paper. A copy carries its original's lesion, and its name in the column `copy_of`.
    Copies are of the largest centred square, as JPEG; which operations a copy has follows from (seed, image id, number
    of the copy) alone. A class's pictures take turns. Raises OutputError if `out` exists and is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} exists and is not empty", hint="choose another --out, or remove it")
    part_of = _parts(table, split)
    plan = _plan(table, part_of, seed, target)
    total = len(table) + sum(number for _, number in plan)
    with atomic_dir(out) as folder:
        rows = []

        def add(sample: Sample, name: str, copy_of: str = "") -> None:
            rows.append(_row(table, sample, name, part_of, copy_of=copy_of))
            if progress and len(rows) % 50 == 0:
                progress(len(rows), total, "writing pictures")

        for sample in table.samples:
            add(sample, _write_original(sample, folder / "images"))
        for sample, number in plan:
            for k, picture in _changed(sample, number, seed, magnitude):
                name = f"{sample.image_id}~{k + 1}.jpg"
                picture.save(folder / "images" / name, quality=95, subsampling=0)
                add(sample, name, copy_of=sample.image_id)
        with (folder / TABLE).open("w", newline="", encoding="utf-8") as f:
            writer = csv.writer(f, lineterminator="\n")
            # Without a split the column would say nothing, and readers would look for a part in every row.
            used = [k for k, column in enumerate(COLUMNS) if column != "split" or split is not None]
            writer.writerows([row[k] for k in used] for row in (COLUMNS, *rows))
    copied = dict.fromkeys(table.classes, 0)
    for sample, number in plan:
        copied[table.classes[sample.label]] += number
    return Copies(out / TABLE, total, copied)


def _parts(table: Table, split: Split | None) -> dict[str, str]:
    if split is None:
        return {}
    return {image: part for part in PARTS for image in getattr(split, part)}


def _plan(table: Table, part_of: dict[str, str], seed: int, target: Target) -> list[tuple[Sample, int]]:
    """How often each picture is copied."""
    sources = [s for s in table.samples if not part_of or part_of[s.image_id] == "train"]
    counts = np.bincount([s.label for s in sources], minlength=len(table.classes)).tolist()
    plan = []
    for label, wanted in enumerate(copies_wanted(counts, target)):
        own = sorted((s for s in sources if s.label == label), key=lambda s: shuffle_key(seed, s.image_id))
        for k, sample in enumerate(own):
            number = wanted // len(own) + (k < wanted % len(own))
            if number:
                plan.append((sample, number))
    return plan


def _write_original(sample: Sample, folder: Path) -> str:
    inside = picture_of(sample.path)
    name = f"{sample.image_id}{'.png' if inside else sample.path.suffix.lower()}"
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if inside:
        load_rgb(sample.path).save(target)
        return name
    try:
        shutil.copyfile(sample.path, target)
    except FileNotFoundError as error:
        raise DataError(f"image {sample.path} does not exist", hint="restore it, or take its row out") from error
    return name


def _changed(sample: Sample, number: int, seed: int, magnitude: float) -> Iterator[tuple[int, Image.Image]]:
    image = load_rgb(sample.path)
    square = torch.from_numpy(resize_square(image, min(image.size), "bilinear").copy()).permute(2, 0, 1).contiguous()
    for k in range(number):
        changed = rand_augment(square, view_numbers(seed, sample.image_id, k)[8:15], magnitude)
        yield k, Image.fromarray(changed.permute(1, 2, 0).numpy())


def _row(
    table: Table, sample: Sample, name: str, part_of: dict[str, str], *, copy_of: str = ""
) -> tuple[str, str, str, str, str, str]:
    part = part_of.get(sample.image_id, "")
    return f"images/{name}", table.classes[sample.label], sample.group, sample.source or "", part, copy_of
