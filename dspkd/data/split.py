"""Train, validation and test parts that no lesion crosses, stratified by class, made once and stored with a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dspkd.data.table import PARTS, Table
from dspkd.errors import DataError, DspkdError
from dspkd.fileio import canonical_json, read_sealed_json, sha256_bytes, write_sealed_json
from dspkd.protocol import PAPER

__all__ = [
    "PARTS",
    "SPLIT_SCHEMA_VERSION",
    "Split",
    "crossing_groups",
    "indices",
    "joined_groups",
    "known_images",
    "load_split",
    "make_split",
    "read_split",
    "save_split",
    "shuffle_key",
]

SPLIT_SCHEMA_VERSION = 1


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
    method: str = "lesions"
    """`lesions`, `column` (the data set's own parts), `fold K of N` or `paper` (by picture: it leaks)."""

    @cached_property
    def sha256(self) -> str:
        """Hash of the three parts and the data set; the same for any order of the ids."""
        return sha256_bytes(canonical_json([self.table_sha256, *(sorted(getattr(self, part)) for part in PARTS)]))

    @property
    def leaks(self) -> bool:
        """Made by the paper's protocol: lesions cross it."""
        return self.method == PAPER


def make_split(
    table: Table,
    *,
    seed: int = 0,
    val: float = 0.1,
    test: float = 0.2,
    folds: int | None = None,
    fold: int = 0,
    by_column: bool | None = None,
    duplicates: Iterable[Sequence[str]] = (),
    protocol: str = "lesions",
) -> Split:
    """Divide lesions so that every class keeps its share in every part, as nearly as whole lesions allow.

    Lesions are dealt out one by one, those of the rarest class first and larger ones before smaller, each to the part
    that is furthest below its target for that class. The order among equals comes from a hash of (seed, lesion), so the
    result depends neither on the order of the rows nor on the machine. A class with fewer than three lesions cannot be
    in all three parts; a warning says so. Each of `duplicates` is a number of image ids that show the same picture:
    their lesions are treated as one.

    With `folds` the lesions are first dealt into that many folds; number `fold` is the test part, and the validation
    part, the share `val` of all images, is taken from the others. A data set that brings its own parts keeps them
    (unless `by_column` is false or `folds` is given); if it has no validation part, one is taken from the training
    part. With the protocol `paper` every picture is dealt out on its own and the data set's own parts are not asked
    for; such a split leaks and says so in its `method`.

    Raises DataError if there are too few lesions, or if a lesion or duplicate crosses the parts that the data set
    brings.
    """
    duplicates = tuple(duplicates)
    if protocol == PAPER:
        groups, by_column = tuple(sample.image_id for sample in table.samples), False
    else:
        groups = joined_groups(table, duplicates)
    if by_column is None:
        by_column = folds is None and any(sample.part for sample in table.samples)
    deal = _Dealing(table, groups, seed)
    if by_column:
        method, parts = "column", _parts_of_column(table, groups, duplicates, deal, val, test)
        if not parts["train"]:
            raise DataError(f"{table.root} brings no training part", hint="put `train` into the column split")
    elif folds is not None:
        _check_folds(folds, fold)
        method = f"fold {fold} of {folds}"
        dealt = deal(deal.lesions, [1 / folds] * folds)
        remaining = [name for k, names in enumerate(dealt) for name in names if k != fold]
        train, held_out = deal(remaining, [1 - val * folds / (folds - 1), val * folds / (folds - 1)])
        parts = {"train": deal.images(train), "val": deal.images(held_out), "test": deal.images(dealt[fold])}
    else:
        method = PAPER if protocol == PAPER else "lesions"
        dealt = deal(deal.lesions, [1.0 - val - test, val, test])
        parts = {part: deal.images(names) for part, names in zip(PARTS, dealt, strict=True)}
    if not all(parts.values()):
        raise DataError(
            f"{table.root} has too few lesions ({len(deal.lesions)}) to be divided into train, val and test",
            hint="add images",
        )
    return Split(
        **{part: tuple(sorted(table.samples[i].image_id for i in parts[part])) for part in PARTS},
        seed=seed,
        val_fraction=val,
        test_fraction=test,
        classes=table.classes,
        table_sha256=table.sha256,
        warnings=_absent_classes(table, parts),
        method=method,
    )


def joined_groups(table: Table, duplicates: Iterable[Sequence[str]] = ()) -> tuple[str, ...]:
    """The lesion of each sample, with lesions joined that share a duplicate. The name is the first of those joined."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while (above := leader.get(name, name)) != name:
            name = above
        return name

    lesion_of = {sample.image_id: sample.group for sample in table.samples}
    for images in duplicates:
        names = sorted({find(lesion_of[image]) for image in images if image in lesion_of})
        for name in names[1:]:
            leader[name] = names[0]
    return tuple(find(sample.group) for sample in table.samples)


def known_images(table: Table, learned: Iterable[str], asked: Iterable[str]) -> list[str]:
    """Ids of those of the `asked` images that show a lesion of the `learned` ones, in the table's order."""
    learned, asked = set(learned), set(asked)
    lesions = {sample.group for sample in table.samples if sample.image_id in learned}
    return [s.image_id for s in table.samples if s.image_id in asked and s.group in lesions]


def crossing_groups(groups: Sequence[str], parts: Sequence[str | None]) -> dict[str, list[str]]:
    """{lesion: the parts it is in} of every lesion that is in more than one; `groups` and `parts` are per image."""
    found: dict[str, set[str]] = {}
    for group, part in zip(groups, parts, strict=True):
        if part is not None:
            found.setdefault(group, set()).add(part)
    return {group: [p for p in PARTS if p in where] for group, where in found.items() if len(where) > 1}


class _Dealing:
    """Deals whole lesions out to parts of given shares."""

    def __init__(self, table: Table, groups: Sequence[str], seed: int) -> None:
        self._labels, self._classes, self._seed = table.labels, len(table.classes), seed
        self.lesions: dict[str, list[int]] = {}
        for index, group in enumerate(groups):
            self.lesions.setdefault(group, []).append(index)

    def images(self, names: Iterable[str]) -> list[int]:
        return [index for name in names for index in self.lesions[name]]

    def __call__(self, names: Iterable[str], shares: Sequence[float]) -> list[list[str]]:
        names = list(names)
        counts = np.bincount(self._labels[self.images(names)], minlength=self._classes)
        main_class = {name: _main_class(self._labels[self.lesions[name]], counts) for name in names}
        order = sorted(
            names,
            key=lambda name: (
                int(counts[main_class[name]]),
                main_class[name],
                -len(self.lesions[name]),
                shuffle_key(self._seed, name),
            ),
        )
        target = np.array(shares)[:, None] * counts
        placed = np.zeros((len(shares), self._classes))
        parts: list[list[str]] = [[] for _ in shares]
        for name in order:
            k = main_class[name]
            # Relative need, so that the small parts get their share of a rare class before the training part takes it
            # all.
            need = (target[:, k] - placed[:, k]) / np.maximum(target[:, k], 1e-9)
            choice = int(np.argmax(need))
            parts[choice].append(name)
            np.add.at(placed[choice], self._labels[self.lesions[name]], 1)
        return parts


def _parts_of_column(
    table: Table, groups: Sequence[str], duplicates: Iterable[Sequence[str]], deal: _Dealing, val: float, test: float
) -> Mapping[str, list[int]]:
    for sample in table.samples:
        if sample.part is None:
            raise DataError(
                f"{sample.listed or table.root}: image {sample.image_id} is in no part of the split",
                hint=f"write one of {', '.join(PARTS)} into the column split of every row, or remove the column",
            )
    own = [sample.part for sample in table.samples]
    _refuse_crossing(table, own, duplicates)
    parts = {part: [i for i, p in enumerate(own) if p == part] for part in PARTS}
    if parts["train"] and not parts["val"]:
        lesions = list(dict.fromkeys(groups[i] for i in parts["train"]))
        share = val / (1.0 - test)
        train, held_out = deal(lesions, [1.0 - share, share])
        parts |= {"train": deal.images(train), "val": deal.images(held_out)}
    return parts


def _refuse_crossing(table: Table, own: Sequence[str | None], duplicates: Iterable[Sequence[str]]) -> None:
    crossing = crossing_groups([sample.group for sample in table.samples], own)
    listed = "`dspkd data check` lists them; "
    if crossing:
        lesion, where = next(iter(crossing.items()))
        raise DataError(
            f"{table.root}: {len(crossing)} lesions cross the split of its own column, {lesion} "
            f"({' and '.join(where)}) among them",
            hint=f"{listed}mend the column, or divide by lesion with --set data.own_split=false",
        )
    part_of = {sample.image_id: part for sample, part in zip(table.samples, own, strict=True)}
    apart = []
    for images in duplicates:
        known = [image for image in images if image in part_of]
        if len({part_of[image] for image in known}) > 1:
            apart.append(known)
    if apart:
        shown = " and ".join(f"{image} ({part_of[image]})" for image in apart[0])
        raise DataError(
            f"{table.root}: images that show the same picture are in different parts of the split that it brings, "
            f"{len(apart)} times, {shown} among them",
            hint=f"{listed}leave copies out, or divide anew with --set data.own_split=false; to compare with published "
            "figures on that split: --set data.join_duplicates=false",
        )


def _check_folds(folds: int, fold: int) -> None:
    if folds < 2 or not 0 <= fold < folds:
        raise DataError(f"fold {fold} of {folds} does not exist", hint="folds count from 0, and there are at least two")


def _absent_classes(table: Table, parts: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    counts = {part: np.bincount(table.labels[list(parts[part])], minlength=len(table.classes)) for part in PARTS}
    return tuple(
        f"class {name} has no image in the {part} part: it has too few lesions"
        for k, name in enumerate(table.classes)
        for part in PARTS
        if sum(counts[p][k] for p in PARTS) and counts[part][k] == 0
    )


def _main_class(labels: np.ndarray, counts: np.ndarray) -> int:
    """The rarest of a lesion's labels: where images of one lesion disagree, the rare class needs it more."""
    return int(min(np.unique(labels), key=lambda k: (counts[k], k)))


def shuffle_key(seed: int, name: str) -> str:
    """To sort names by: an order that looks random and is the same on every machine."""
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
            "method": split.method,
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
        method=value.get("method", "lesions"),
    )


def indices(split: Split, table: Table, part: str) -> np.ndarray:
    """Positions in `table.samples` of one part, ascending, int64."""
    if part not in PARTS:
        raise DataError(f"unknown part {part!r}", hint=f"use one of {', '.join(PARTS)}")
    wanted = set(getattr(split, part))
    return np.array([i for i, sample in enumerate(table.samples) if sample.image_id in wanted], dtype=np.int64)
