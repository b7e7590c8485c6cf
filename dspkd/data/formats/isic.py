"""ISIC 2019: a one-hot GroundTruth.csv, a metadata.csv with lesions, a folder of pictures; training or test or both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dspkd.data.formats.files import ImageFiles, fitting, image_folder
from dspkd.data.formats.tables import (
    chosen_classes,
    csv_files,
    find_csv,
    header_of,
    make_sample,
    only_one,
    read_csv,
    read_metadata,
    report_metadata,
    report_missing_files,
    unknown_class,
)
from dspkd.data.table import Fault, Report, Sample, Severity, Table, refuse
from dspkd.errors import DataError

__all__ = ["is_isic", "read_isic", "read_isic_labels"]

LAYOUT = "ISIC 2019"
UNKNOWN = "UNK"
# In the official names of tables and folders of pictures.
SETS = ("training", "validation", "test")
# The official test table weighs its images in two more columns.
NO_CLASSES = frozenset({"score_weight", "validation_weight"})


def is_isic(root: Path) -> bool:
    """By name and header: tables of one label in a row, as HAM10000's test part, may be called ground truth too."""
    return any({"dx", "label"}.isdisjoint(header_of(path)) for path in csv_files(root, "groundtruth"))


def read_isic_labels(path: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """A one-hot table -> (classes in the header's order, {image: class}). Columns without any image are left out.

    Raises DataError with file and row for a row without a class, with two, with a value that is no number, or an image
    that stands in the table twice.
    """
    columns, rows = _one_hot_rows(path, refuse)
    used = {name for name, _ in rows.values()}
    return tuple(name for name in columns if name in used), {image: name for image, (name, _) in rows.items()}


def _one_hot_rows(path: Path, report: Report) -> tuple[tuple[str, ...], dict[str, tuple[str, int]]]:
    """Class columns in order, and of each image its class and its line in the file."""
    table = read_csv(path, report)
    columns = [name for name in table.header if name]
    classes = tuple(name for name in columns[1:] if name not in NO_CLASSES)
    if len(classes) < 2 or columns[0] != "image" or len(set(columns)) < len(columns):
        raise DataError(f"table {path} is no one-hot table", hint="its header must be image,CLASS,CLASS,...")
    if not table.rows:
        raise DataError(f"table {path} has no rows", hint="it needs one row for each image")
    labels: dict[str, tuple[str, int]] = {}
    for number, row in table:
        image = row["image"]
        fault, name = _class_of(f"{path} row {number}", image, row, classes)
        if fault is not None:
            report(fault)
            continue
        if image in labels:
            first, line = labels[image]
            other = "" if first == name else f" with other labels ({first} and {name})"
            what = f"{path}: image {image} stands in rows {line} and {number}{other}"
            report(Fault("row-twice", "error", what, "keep one row", (image,)))
            continue
        labels[image] = name, number
    return classes, labels


def _class_of(where: str, image: str, row: dict[str, str], classes: Sequence[str]) -> tuple[Fault | None, str]:
    positive = []
    for name in classes:
        try:
            value = float(row[name])
        except (TypeError, ValueError):
            value = -1.0
        if value not in (0.0, 1.0):
            what = f"{where} (image {image}): column {name} is {row[name]!r}, expected 0 or 1"
            return Fault("no-one-hot-value", "error", what, None, (image,)), ""
        if value:
            positive.append(name)
    if len(positive) == 1:
        return None, positive[0]
    kind = "two-labels" if positive else "no-label"
    what = f"two labels: {' and '.join(positive)}" if positive else "no label"
    hint = "give every image exactly one class"
    return Fault(kind, "error", f"{where}: image {image} has {what}", hint, (image,)), ""


def read_isic(root: Path, classes: Sequence[str] | None, report: Report, *, need_files: bool) -> Table:
    """Both official tables in one folder are the training and the test part; a table alone gives no parts.

    Images labelled UNK belong to none of the classes; they are left out unless `classes` has UNK.
    """
    training, test = (find_csv(root, "groundtruth", word) for word in ("training", "test"))
    if training and test:
        sets = [_LabelTable("train", "training", training, report), _LabelTable("test", "test", test, report)]
    elif labels_csv := find_csv(root, "groundtruth"):
        sets = [_LabelTable(None, _set_of(labels_csv), labels_csv, report)]
    else:
        raise DataError(f"{root} holds no table of labels", hint="its name must contain GroundTruth")
    for image in sorted(set.intersection(*(set(labels.rows) for labels in sets))) if len(sets) > 1 else ():
        what = f"image {image} stands in {' and in '.join(str(labels.path) for labels in sets)}"
        report(Fault("row-twice", "error", what, "keep one row", (image,)))
        del sets[-1].rows[image]
    columns = tuple(dict.fromkeys(name for labels in sets for name in labels.classes))
    used = {name for labels in sets for name, _ in labels.rows.values()}
    for name in columns:
        if name not in used:
            severity: Severity = "note" if name == UNKNOWN else "warning"
            report(Fault("empty-class", severity, f"class {name} of {root} has no image; it is no class here"))
    chosen = chosen_classes([name for name in columns if name in used and name != UNKNOWN], classes)
    unknown = [n for labels in sets for n, (name, _) in labels.rows.items() if name == UNKNOWN]
    remarks = []
    if unknown and UNKNOWN not in chosen:
        remarks = [f"{len(unknown)} images of {root} are labelled UNK, which is none of the classes: left out"]
        report(Fault("unk", "warning", remarks[0], None, tuple(unknown)))
    samples: list[Sample] = []
    metadata: dict[Path | None, dict[str, dict[str, str]]] = {}
    row_of: dict[Path | None, dict[str, str | None]] = {}
    for labels in sets:
        # One table, perhaps that of the whole collection, may serve both sets.
        path = only_one(root, fitting(csv_files(root, "metadata"), labels.word, SETS), "metadata")
        if path not in metadata:
            metadata[path], row_of[path] = read_metadata(path, report), {}
        made = list(_samples(root, labels, chosen, metadata[path], report, need_files))
        row_of[path] |= {s.image_id: s.image_id if s.image_id in metadata[path] else None for s in made}
        samples += made
    for path, rows in metadata.items():
        remarks += report_metadata(root, path, rows, row_of[path], report)
    return Table(root, tuple(chosen), tuple(samples), LAYOUT, tuple(remarks))


def _set_of(path: Path) -> str | None:
    return next((word for word in SETS if word in path.stem.lower()), None)


class _LabelTable:
    """A table of labels; `part` where there are two, `word` (in the names of its metadata and its folder) if any."""

    def __init__(self, part: str | None, word: str | None, path: Path, report: Report) -> None:
        self.part, self.word, self.path = part, word, path
        self.classes, self.rows = _one_hot_rows(path, report)


def _samples(
    root: Path,
    labels: _LabelTable,
    chosen: dict[str, int],
    metadata: dict[str, dict[str, str]],
    report: Report,
    need_files: bool,
) -> Iterator[Sample]:
    folder = image_folder(root, labels.word, SETS)
    files = ImageFiles([folder], report, needed=need_files)
    missing = []
    for image, (name, number) in labels.rows.items():
        if name not in chosen:
            if name != UNKNOWN:
                report(unknown_class(f"{labels.path} row {number} (image {image})", name, chosen, image))
            continue
        path = files.find(image)
        if path is None:
            missing.append((number, image))
            continue
        row, listed = metadata.get(image, {}), f"{labels.path} row {number}"
        yield make_sample(image, path, chosen[name], row, listed=listed, part=labels.part)
    report_missing_files(labels.path, missing, folder, report)
