"""Labelled images as they are handed over. `dspkd.data.formats` has one module for each layout.

Reading a table never decodes an image. Whatever is wrong with a table is one DataError that names the file, the row and
the value; `dspkd data check` collects them all.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dspkd.data.download import HOW_TO_DOWNLOAD
from dspkd.data.formats.class_folders import read_class_folders
from dspkd.data.formats.ham10000 import find_ham10000, read_ham10000
from dspkd.data.formats.isic import is_isic, read_isic, read_isic_labels
from dspkd.data.formats.medmnist import find_medmnist, read_medmnist
from dspkd.data.formats.plain_csv import find_plain_csv, read_plain_csv
from dspkd.data.formats.tables import header_of
from dspkd.data.table import Fault, Report, Sample, Table, refuse
from dspkd.errors import DataError

__all__ = ["Sample", "Table", "read_isic_labels", "read_table"]


def read_table(
    root: Path, *, classes: Sequence[str] | None = None, report: Report = refuse, need_files: bool = True
) -> Table:
    """Read a data set in whichever layout `root` holds: ISIC 2019, HAM10000, MedMNIST, a plain CSV, class folders.

    `root` is a folder, a CSV or an .npz. With `classes` the labels are expressed in that list, matched by name (a class
    without images is fine). Raises DataError if there is nothing to read, and by default for the first fault; another
    `report` may collect the faults, and what they concern is left out: all images, perhaps. Without `need_files` tables
    are read whose pictures lie elsewhere.
    """
    errors: list[Fault] = []

    def noting(fault: Fault) -> None:
        report(fault)
        if fault.severity == "error":
            errors.append(fault)

    if not root.exists():
        raise DataError(f"data folder {root} does not exist", hint=f"check the path; {HOW_TO_DOWNLOAD}")
    try:
        table = (_read_folder if root.is_dir() else _read_file)(root, classes, noting, need_files)
    except OSError as error:
        raise DataError(
            f"{error.filename or root} cannot be read: {error.strerror or error}", hint="mend its permissions"
        ) from error
    if not table.samples and not errors:
        raise DataError(f"{root} holds no labelled images", hint=HOW_TO_DOWNLOAD)
    return table if classes is not None else _with_similar_classes_said(table, report)


def _with_similar_classes_said(table: Table, report: Report) -> Table:
    """Labels that people wrote: nv and NV are two classes, and hardly ever meant so."""
    alike: dict[str, list[str]] = {}
    for name in table.classes:
        alike.setdefault(unicodedata.normalize("NFC", name).casefold(), []).append(name)
    counts, remarks = table.counts(), list(table.remarks)
    for names in alike.values():
        if len(names) > 1:
            named = " and ".join(f"{name} ({counts[name]} images)" for name in names)
            what = f"classes of {table.root} that differ in upper and lower case alone: {named}"
            report(Fault("similar-classes", "warning", what, "write them the same way if they are one", tuple(names)))
            remarks.append(what)
    return replace(table, remarks=tuple(remarks))


def _read_folder(root: Path, classes: Sequence[str] | None, report: Report, need_files: bool) -> Table:
    if is_isic(root):
        return read_isic(root, classes, report, need_files=need_files)
    if found := find_ham10000(root):
        return read_ham10000(found, classes, report, need_files=need_files)
    if found := find_plain_csv(root):
        return read_plain_csv(found, classes, report, need_files=need_files)
    if found := find_medmnist(root):
        return read_medmnist(found, classes, report)
    return read_class_folders(root, classes, report)


def _read_file(path: Path, classes: Sequence[str] | None, report: Report, need_files: bool) -> Table:
    if path.suffix.lower() == ".npz":
        return read_medmnist(path, classes, report)
    if {"image_id", "dx"} <= set(header_of(path)):
        return read_ham10000(path, classes, report, need_files=need_files)
    if path.suffix.lower() == ".csv":
        return read_plain_csv(path, classes, report, need_files=need_files)
    raise DataError(f"{path} is no data set", hint="give a folder, a CSV or a MedMNIST .npz")
