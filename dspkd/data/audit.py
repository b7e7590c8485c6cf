"""Everything that a data set's owner should know before anything is trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dspkd.data.fingerprints import DuplicatePair, Fingerprints, find_duplicates, take_fingerprints
from dspkd.data.inventory import report_files
from dspkd.data.sources import read_table
from dspkd.data.split import PARTS, crossing_groups, read_split
from dspkd.data.table import Fault, Report, Sample, Table
from dspkd.errors import DataError

__all__ = ["Audit", "SuspiciousPair", "audit"]

SCHEMA_VERSION = 1
SMALLEST_SIDE = 16
LARGEST_RATIO = 10.0
# What Pillow decodes without suspicion.
LARGEST_AREA = 89_478_485

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class SuspiciousPair:
    """Two images that show the same picture. `reasons` says what makes that worse than a waste."""

    first: str
    second: str
    exact: bool
    orientation: str
    similarity: float
    labels: tuple[str, str]
    parts: tuple[str | None, str | None]
    same_lesion: bool
    paths: tuple[Path, Path] = field(compare=False)

    @property
    def disagrees(self) -> bool:
        return self.labels[0] != self.labels[1]

    @property
    def crosses(self) -> bool:
        return None not in self.parts and self.parts[0] != self.parts[1]

    def to_json(self) -> dict[str, Any]:
        value = asdict(self)
        value["paths"] = [str(p) for p in self.paths]
        return {**value, "disagrees": self.disagrees, "crosses": self.crosses}


@dataclass(frozen=True)
class Audit:
    table: Table
    parts: tuple[str | None, ...]
    faults: tuple[Fault, ...]
    pairs: tuple[SuspiciousPair, ...]
    sizes: dict[str, Any] | None
    """None where no image was decoded."""

    @property
    def errors(self) -> tuple[Fault, ...]:
        return tuple(fault for fault in self.faults if fault.severity == "error")

    def counts(self) -> dict[str, dict[str, int]]:
        """{class: images, lesions and, where there are parts, images of each part}"""
        rows: dict[str, dict[str, int]] = {}
        for k, name in enumerate(self.table.classes):
            own = [i for i, s in enumerate(self.table.samples) if s.label == k]
            lesions = len({self.table.samples[i].group for i in own})
            rows[name] = {"images": len(own), "lesions": lesions}
            if any(self.parts):
                rows[name] |= {part: sum(self.parts[i] == part for i in own) for part in PARTS}
        return rows

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "root": str(self.table.root),
            "layout": self.table.layout,
            "table_sha256": self.table.sha256,
            "ok": not self.errors,
            "images": len(self.table),
            "lesions": len({s.group for s in self.table.samples}),
            "classes": self.counts(),
            "sizes": self.sizes,
            "faults": [asdict(fault) for fault in self.faults],
            "pairs": [pair.to_json() for pair in self.pairs],
        }


def audit(root: Path, *, split: Path | None = None, decode: bool = True, progress: Progress | None = None) -> Audit:
    """Read the tables, walk the folder, decode every image and compare all with all.

    Parts are those of the stored `split`, else the data set's own. Without `decode` only the tables are looked at, and
    images need not be there. Raises DataError where there is no data set at all; every other fault is in the result.
    """
    faults: list[Fault] = []
    table = read_table(root, report=faults.append, need_files=decode)
    parts = _stored_parts(split, table, faults.append) if split else tuple(s.part for s in table.samples)
    _report_lesions(table, parts, faults.append)
    pairs: tuple[SuspiciousPair, ...] = ()
    sizes = None
    if decode:
        report_files(root, table, faults.append)
        prints = take_fingerprints(table, progress=progress)
        _report_pictures(table, prints, faults.append)
        sizes = _sizes(prints)
        found = find_duplicates(prints, progress=progress)
        pairs = tuple(sorted((_describe(p, table, parts) for p in found), key=_worst_first))
        _report_pairs(pairs, tuple(faults), faults.append)
    order = {"error": 0, "warning": 1, "note": 2}
    return Audit(table, parts, tuple(sorted(faults, key=lambda f: order[f.severity])), pairs, sizes)


def _stored_parts(path: Path, table: Table, report: Report) -> tuple[str | None, ...]:
    value = read_split(path)
    if value["table_sha256"] != table.sha256:
        what = f"split {path} was made for other images, labels or lesions than {table.root} holds now"
        report(Fault("split-of-other-data", "error", what, "make a new one"))
    of = {image: part for part in PARTS for image in value[part]}
    absent = [s.image_id for s in table.samples if s.image_id not in of]
    if absent:
        what = f"split {path} has no part for {absent[0]}" + (f" and {len(absent) - 1} more" if absent[1:] else "")
        report(Fault("not-in-split", "warning", what, "make a new one", tuple(absent)))
    return tuple(of.get(s.image_id) for s in table.samples)


def _report_lesions(table: Table, parts: Sequence[str | None], report: Report) -> None:
    members: dict[str, list[int]] = {}
    for index, sample in enumerate(table.samples):
        members.setdefault(sample.group, []).append(index)
    for lesion, where in crossing_groups([s.group for s in table.samples], parts).items():
        images = tuple(table.samples[i].image_id for i in members[lesion])
        what = f"lesion {lesion} is in {' and '.join(where)}: {', '.join(images[:3])}{' ...' if images[3:] else ''}"
        report(Fault("lesion-crosses-split", "error", what, "keep a lesion's images in one part", images))
    for lesion, own in members.items():
        labels = sorted({table.samples[i].label for i in own})
        if len(labels) > 1:
            images = tuple(table.samples[i].image_id for i in own)
            named = ", ".join(f"{table.samples[i].image_id} {table.classes[table.samples[i].label]}" for i in own[:4])
            what = f"lesion {lesion} has {len(labels)} labels: {named}{' ...' if own[4:] else ''}"
            report(Fault("lesion-labels-disagree", "warning", what, "see whether one of them is wrong", images))
    lesions_of = Counter(k for own in members.values() for k in {table.samples[i].label for i in own})
    for k, name in enumerate(table.classes):
        if 0 < lesions_of[k] < 3:
            what = f"class {name} has {lesions_of[k]} lesions: too few for a training, a validation and a test part"
            report(Fault("few-lesions", "warning", what, "add images or leave the class out"))


def _report_pictures(table: Table, prints: Fingerprints, report: Report) -> None:
    for index, sample in enumerate(table.samples):
        width, height = (int(side) for side in prints.sizes[index])
        fault: tuple[str, str, str] | None = None
        if width * height > LARGEST_AREA:
            fault = "too-large", f"has {width} x {height} pixels, as a decompression bomb has", "replace or remove it"
        elif index in prints.faults:
            report(_unreadable(sample, prints.faults[index]))
        elif max(width, height) > LARGEST_RATIO * min(width, height):
            fault = "odd-shape", f"has {width} x {height} pixels: little of it is in the centre square", "remove it"
        elif min(width, height) < SMALLEST_SIDE:
            fault = "too-small", f"has {width} x {height} pixels", "replace or remove it"
        if fault is not None:
            kind, what, hint = fault
            report(Fault(kind, "error", f"image {sample.path} {what}", hint, (sample.image_id,)))


def _unreadable(sample: Sample, error: DataError) -> Fault:
    images = (sample.image_id,)
    if isinstance(error.__cause__, Image.DecompressionBombError):
        return Fault("too-large", "error", error.message, "replace or remove it", images)
    try:
        with sample.path.open("rb") as f:
            head = f.read(64)
    except OSError:
        return Fault("unreadable", "error", error.message, error.hint, images)
    if not head:
        return Fault("empty-file", "error", f"image {sample.path} has no bytes", "copy or download it again", images)
    if head.lstrip().startswith(b"<"):
        what = f"image {sample.path} is text that begins with {head.lstrip()[:15].decode('latin-1')!r}, no picture"
        return Fault("no-picture", "error", what, "download it again: a server may have answered with a page", images)
    kind = "truncated" if "truncated" in error.message else "unreadable"
    return Fault(kind, "error", error.message, error.hint, images)


def _sizes(prints: Fingerprints) -> dict[str, Any]:
    sizes = prints.sizes[prints.sizes.min(axis=1) > 0]
    if not len(sizes):
        return {"smallest": None, "largest": None, "most_common": []}
    area = sizes.prod(axis=1)
    common = Counter(map(tuple, sizes.tolist())).most_common(5)
    return {
        "smallest": sizes[int(np.argmin(area))].tolist(),
        "largest": sizes[int(np.argmax(area))].tolist(),
        "most_common": [{"size": list(size), "images": n} for size, n in common],
    }


def _describe(pair: DuplicatePair, table: Table, parts: Sequence[str | None]) -> SuspiciousPair:
    first, second = table.samples[pair.first], table.samples[pair.second]
    return SuspiciousPair(
        first.image_id,
        second.image_id,
        pair.exact,
        pair.orientation,
        round(pair.similarity, 4),
        (table.classes[first.label], table.classes[second.label]),
        (parts[pair.first], parts[pair.second]),
        first.group == second.group,
        (first.path, second.path),
    )


def _worst_first(pair: SuspiciousPair) -> tuple[object, ...]:
    return not pair.crosses, not pair.disagrees, pair.same_lesion, not pair.exact, -pair.similarity, pair.first


def _report_pairs(pairs: Sequence[SuspiciousPair], told: Sequence[Fault], report: Report) -> None:
    contradictions = {frozenset(fault.images) for fault in told if fault.kind == "one-picture-two-labels"}
    for pair in pairs:
        images = (pair.first, pair.second)
        how = "the same file" if pair.exact else f"the same picture, {pair.orientation}"
        named = f"{pair.first} and {pair.second} are {how}"
        if pair.disagrees and frozenset(images) not in contradictions:
            what = f"{named}, with the labels {' and '.join(pair.labels)}"
            report(Fault("one-picture-two-labels", "error", what, "one of them is wrong", images))
        if pair.crosses:
            what = f"{named}, in {' and '.join(map(str, pair.parts))}"
            hint = "keep them in one part; a split that dspkd makes does"
            report(Fault("duplicate-crosses-split", "error", what, hint, images))
        if pair.exact and not pair.disagrees and not pair.crosses:
            report(Fault("duplicate", "warning", named, "remove one", images))
        elif not pair.same_lesion and not pair.disagrees and not pair.crosses:
            what = f"{named}, of different lesions"
            report(Fault("near-duplicate", "warning", what, "remove one, or give both the same lesion_id", images))
