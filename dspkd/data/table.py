"""What every layout of images is read into: a table of labelled images, and what was found wrong on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from dspkd.errors import DataError
from dspkd.fileio import canonical_json, sha256_bytes

__all__ = ["IMAGE_SUFFIXES", "PARTS", "Fault", "Report", "Sample", "Severity", "Table", "refuse"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp"})
PARTS = ("train", "val", "test")

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something about a data set that its owner should know. An `error` would make results wrong or impossible."""

    kind: str
    """Its name for scripts, e.g. `missing-file`."""
    severity: Severity
    message: str
    hint: str | None = None
    images: tuple[str, ...] = ()
    """Ids of images, or names of files that belong to none."""


Report = Callable[[Fault], None]


def refuse(fault: Fault) -> None:
    """The report of everybody who wants to work with the images: the first error ends it."""
    if fault.severity == "error":
        raise DataError(fault.message, hint=fault.hint)


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image. `group` is its lesion: images of one group never part in a split."""

    image_id: str
    path: Path
    """The picture's file; for one inside a MedMNIST archive ARCHIVE.npz/ARRAY/INDEX, which `load_rgb` reads as well."""
    label: int
    group: str
    source: str | None = None
    listed: str | None = field(default=None, compare=False)
    """File and row that gave the label, for error messages."""
    part: str | None = field(default=None, compare=False)
    """Part of the split that the data set itself gives this image: `train`, `val` or `test`."""


@dataclass(frozen=True)
class Table:
    """A labelled data set. `classes` are in the order of the labels, and nothing re-sorts them."""

    root: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    layout: str = field(default="", compare=False)
    remarks: tuple[str, ...] = field(default=(), compare=False)
    """What was left out on purpose and should be said where results are."""

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 (N,)"""
        return np.array([sample.label for sample in self.samples], dtype=np.int64)

    @cached_property
    def sha256(self) -> str:
        """Hash of classes, image ids, labels and lesions; the same for any row order and any folder."""
        rows = sorted([s.image_id, self.classes[s.label], s.group] for s in self.samples)
        return sha256_bytes(canonical_json([list(self.classes), rows]))

    def counts(self) -> dict[str, int]:
        numbers = np.bincount(self.labels, minlength=len(self.classes))
        return {name: int(n) for name, n in zip(self.classes, numbers, strict=True)}
