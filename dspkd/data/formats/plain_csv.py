"""Any pictures with a CSV: `image,label` and, where they are known, `lesion_id` and `split`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dspkd.data.formats.files import ImageFiles, image_folder
from dspkd.data.formats.tables import (
    CsvTable,
    chosen_classes,
    header_of,
    make_sample,
    part_of,
    read_csv,
    report_missing_files,
    unknown_class,
    with_clean_label,
)
from dspkd.data.table import IMAGE_SUFFIXES, Fault, Report, Table
from dspkd.errors import DataError

__all__ = ["find_plain_csv", "read_plain_csv"]

LAYOUT = "CSV"
# `isic_id` is what the tables of isic-cli call it.
IMAGE_COLUMNS = ("image", "image_id", "isic_id")


def find_plain_csv(root: Path) -> Path | None:
    found = []
    for path in sorted(root.glob("*.csv")):
        header = header_of(path)
        if "label" in header and any(column in header for column in IMAGE_COLUMNS):
            found.append(path)
    if len(found) > 1:
        raise DataError(
            f"{root} holds several tables with a column label: {', '.join(p.name for p in found)}",
            hint="give the one that is meant: --data FILE.csv",
        )
    return found[0] if found else None


def read_plain_csv(path: Path, classes: Sequence[str] | None, report: Report, *, need_files: bool) -> Table:
    """`image` is a path beside the CSV or in its images/, or a name without suffix. Classes are sorted by name, so that
    their order does not depend on the order of the rows.
    """
    table = read_csv(path, report)
    column = next((name for name in IMAGE_COLUMNS if name in table.header), None)
    if column is None or "label" not in table.header:
        raise DataError(
            f"table {path} has the columns {', '.join(table.header) or 'of an empty file'}",
            hint="its header must be image,label; lesion_id and split may follow",
        )
    rows = _rows(table, column, report)
    chosen = chosen_classes(sorted({row["label"] for _, row in rows.values()}), classes)
    folder = image_folder(path.parent)
    files: ImageFiles | None = None
    samples, missing = [], []
    for image, (number, row) in rows.items():
        where = f"{path} row {number}"
        if row["label"] not in chosen:
            report(unknown_class(f"{where} (image {image})", row["label"], chosen, image))
            continue
        found = next((p for p in (path.parent / row[column], folder / row[column]) if p.is_file()), None)
        if found is None:
            files = files or ImageFiles([folder], report, needed=need_files)
            found = files.find(image)
        if found is None:
            missing.append((number, row[column]))
            continue
        part = part_of(row.get("split"), where, report)
        samples.append(make_sample(image, found, chosen[row["label"]], row, listed=where, part=part))
    report_missing_files(path, missing, folder, report)
    copies = sum(bool(row.get("copy_of")) for _, row in rows.values())
    remarks = (
        [f"{copies} of {len(rows)} pictures are augmented copies (column copy_of of {path.name})"] if copies else []
    )
    return Table(path.parent, tuple(chosen), tuple(samples), LAYOUT, tuple(remarks))


def _rows(table: CsvTable, column: str, report: Report) -> dict[str, tuple[int, dict[str, str]]]:
    """{image id: (line, row)}. The id is the name as it is written, without suffix."""
    rows: dict[str, tuple[int, dict[str, str]]] = {}
    for number, written in table:
        where, row = f"{table.path} row {number}", with_clean_label(written, "label")
        name = row[column]
        if not name or not row["label"]:
            lacks = "names no image" if not name else f"image {name} has no label"
            report(Fault("no-label", "error", f"{where}: {lacks}", f"fill in {column} and label", (name or "",)))
            continue
        file = Path(name)
        image = file.with_suffix("").as_posix() if file.suffix.lower() in IMAGE_SUFFIXES else name
        if image not in rows:
            rows[image] = number, row
            continue
        first, before = rows[image]
        same = before[column] == name
        other = "" if before["label"] == row["label"] else f" with other labels ({before['label']} and {row['label']})"
        what = (
            f"image {image} stands in rows {first} and {number}{other}"
            if same
            else f"{before[column]} (row {first}) and {name} (row {number}) are both image {image}"
        )
        report(Fault("row-twice", "error", f"{table.path}: {what}", "keep one row", (image,)))
    return rows
