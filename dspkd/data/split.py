"""Train, validation and test parts that no lesion crosses, stratified by class, made once and stored with a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dspkd.data.sources import Table
from dspkd.errors import DataError, DspkdError
from dspkd.fileio import canonical_json, read_sealed_json, sha256_bytes, write_sealed_json

__all__ = ["PARTS", "SPLIT_SCHEMA_VERSION", "Split", "indices", "load_split", "make_split", "read_split", "save_split"]

SPLIT_SCHEMA_VERSION = 1
PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Image ids of each part. `table_sha256` says which data set it belongs to."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    seed: int
    val_fraction: float
    test_fraction: float
    classes: tuple[str, ...]
    table_sha256: str
    warnings: tuple[str, ...] = ()

    @cached_property
    def sha256(self) -> str:
        """Hash of the three parts and the data set; the same for any order of the ids."""
        return sha256_bytes(canonical_json([self.table_sha256, *(sorted(getattr(self, part)) for part in PARTS)]))


def make_split(table: Table, *, seed: int = 0, val: float = 0.1, test: float = 0.2) -> Split:
    """Divide lesions so that every class keeps its share in every part, as nearly as whole lesions allow.

    Lesions are dealt out one by one, those of the rarest class first and larger ones before smaller, each to the part
    that is furthest below its target for that class. The order among equals comes from a hash of (seed, lesion), so the
    result depends neither on the order of the rows nor on the machine. A class with fewer than three lesions cannot be
    in all three parts; a warning says so.
    """
    lesions: dict[str, list[int]] = {}
    for index, sample in enumerate(table.samples):
        lesions.setdefault(sample.group, []).append(index)
    counts = np.bincount(table.labels, minlength=len(table.classes))
    lesion_class = {name: _main_class(table.labels[members], counts) for name, members in lesions.items()}
    order = sorted(
        lesions,
        key=lambda name: (
            int(counts[lesion_class[name]]),
            lesion_class[name],
            -len(lesions[name]),
            _shuffle_key(seed, name),
        ),
    )
    share = np.array([1.0 - val - test, val, test])
    placed = np.zeros((3, len(table.classes)))
    lesions_placed = np.zeros((3, len(table.classes)), dtype=int)
    parts: list[list[str]] = [[], [], []]
    for name in order:
        members, k = lesions[name], lesion_class[name]
        target = share * counts[k]
        # Relative need, so that the small parts get their share of a rare class before the training part takes it all.
        need = (target - placed[:, k]) / np.maximum(target, 1e-9)
        choice = int(np.argmax(need))
        parts[choice].extend(table.samples[i].image_id for i in members)
        np.add.at(placed[choice], table.labels[members], 1)
        lesions_placed[choice, k] += 1
    warnings = [
        f"class {name} has no image in the {part} part: it has too few lesions"
        for k, name in enumerate(table.classes)
        for p, part in enumerate(PARTS)
        if counts[k] and placed[p, k] == 0
    ]
    train, val_ids, test_ids = (tuple(sorted(ids)) for ids in parts)
    if not (train and val_ids and test_ids):
        raise DataError(
            f"{table.root} has too few lesions ({len(lesions)}) to be divided into train, val and test",
            hint="add images",
        )
    return Split(train, val_ids, test_ids, seed, val, test, table.classes, table.sha256, tuple(warnings))


def _main_class(labels: np.ndarray, counts: np.ndarray) -> int:
    """The rarest of a lesion's labels: where images of one lesion disagree, the rare class needs it more."""
    return int(min(np.unique(labels), key=lambda k: (counts[k], k)))


def _shuffle_key(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()


def save_split(split: Split, path: Path) -> None:
    write_sealed_json(
        path,
        {
            "kind": "split",
            "schema_version": SPLIT_SCHEMA_VERSION,
            "seed": split.seed,
            "val_fraction": split.val_fraction,
            "test_fraction": split.test_fraction,
            "classes": list(split.classes),
            "table_sha256": split.table_sha256,
            "split_sha256": split.sha256,
            "warnings": list(split.warnings),
            **{part: list(getattr(split, part)) for part in PARTS},
        },
    )


def read_split(path: Path) -> dict[str, Any]:
    """A stored split as it was written, whatever data it belongs to. Raises DataError if it was edited."""
    try:
        return read_sealed_json(path, kind="split", schema_version=SPLIT_SCHEMA_VERSION)
    except DspkdError as error:
        raise DataError(error.message, hint=error.hint) from error


def load_split(path: Path, table: Table) -> Split:
    """A stored split of this very table. Raises DataError if it was made for other images, labels or lesions."""
    value = read_split(path)
    if value["table_sha256"] != table.sha256:
        raise DataError(
            f"split {path} was made for another data set than {table.root} "
            "(images, labels, lesions or class order differ)",
            hint="leave --split out to make a new one, or give the data that it was made for",
        )
    ids: dict[str, Sequence[str]] = {part: value[part] for part in PARTS}
    return Split(
        **{part: tuple(ids[part]) for part in PARTS},
        seed=value["seed"],
        val_fraction=value["val_fraction"],
        test_fraction=value["test_fraction"],
        classes=tuple(value["classes"]),
        table_sha256=value["table_sha256"],
        warnings=tuple(value["warnings"]),
    )


def indices(split: Split, table: Table, part: str) -> np.ndarray:
    """Positions in `table.samples` of one part, ascending, int64."""
    if part not in PARTS:
        raise DataError(f"unknown part {part!r}", hint=f"use one of {', '.join(PARTS)}")
    wanted = set(getattr(split, part))
    return np.array([i for i, sample in enumerate(table.samples) if sample.image_id in wanted], dtype=np.int64)
