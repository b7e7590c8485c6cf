"""HAM10000: one metadata table with `image_id`, `dx` and `lesion_id`, and the pictures in one or two folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dspkd.data.formats.files import ImageFiles, image_folder, subfolders
from dspkd.data.formats.tables import (
    chosen_classes,
    header_of,
    make_sample,
    read_csv,
    report_missing_files,
    unknown_class,
    with_clean_label,
)
from dspkd.data.table import Fault, Report, Table
from dspkd.errors import DataError

__all__ = ["CLASSES", "find_ham10000", "read_ham10000"]

LAYOUT = "HAM10000"
# The names that the collection uses, in the order of MedMNIST's labels of the same images.
CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


def find_ham10000(root: Path) -> Path | None:
    """The table, known by its columns. Dataverse hands it over without a suffix, or as .tab."""
    candidates = [*root.glob("*.csv"), *root.glob("*.tab"), *root.glob("HAM10000_metadata")]
    found = sorted(p for p in candidates if p.is_file() and {"image_id", "dx"} <= set(header_of(p)))
    if len(found) > 1:
        raise DataError(
            f"{root} holds several tables with a column dx: {', '.join(p.name for p in found)}",
            hint=f"give the one that is meant: --data {found[0]}",
        )
    return found[0] if found else None


def read_ham10000(path: Path, classes: Sequence[str] | None, report: Report, *, need_files: bool) -> Table:
    """Classes are `CLASSES` as far as they have images, then other names, sorted."""
    root = path.parent
    table = read_csv(path, report)
    rows: dict[str, tuple[int, dict[str, str]]] = {}
    for number, written in table:
        row = with_clean_label(written, "dx")
        image = row["image_id"]
        if image in rows:
            first, before = rows[image]
            labels = "" if row["dx"] == before["dx"] else f" with other labels ({before['dx']} and {row['dx']})"
            what = f"{path}: image {image} stands in rows {first} and {number}{labels}"
            report(Fault("row-twice", "error", what, "keep one row", (image,)))
        elif not row["dx"]:
            what = f"{path} row {number}: image {image} has no label"
            report(Fault("no-label", "error", what, "write its diagnosis into column dx", (image,)))
        else:
            rows[image] = number, row
    used = {row["dx"] for _, row in rows.values()}
    chosen = chosen_classes([*(c for c in CLASSES if c in used), *sorted(used - set(CLASSES))], classes)
    folder = image_folder(root)
    folders = subfolders(root) if folder == root else []
    files = ImageFiles([folder, *folders], report, needed=need_files)
    samples, missing = [], []
    for image, (number, row) in rows.items():
        listed = f"{path} row {number}"
        if row["dx"] not in chosen:
            report(unknown_class(f"{listed} (image {image})", row["dx"], chosen, image))
            continue
        found = files.find(image)
        if found is None:
            missing.append((number, image))
        else:
            samples.append(make_sample(image, found, chosen[row["dx"]], row, listed=listed))
    report_missing_files(path, missing, folder, report)
    return Table(root, tuple(chosen), tuple(samples), LAYOUT)
