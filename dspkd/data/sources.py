"""Labelled images as they are handed over: the ISIC2019 layout, or one folder per class.

Reading a table never decodes an image. Whatever is wrong with a table is one DataError that names the file, the row and
the value.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from dspkd.errors import DataError
from dspkd.fileio import canonical_json, sha256_bytes, sha256_file

__all__ = ["Sample", "Table", "read_isic_labels", "read_table"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp"})


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image. `group` is its lesion: images of one group never part in a split."""

    image_id: str
    path: Path
    label: int
    group: str
    source: str | None = None
    listed: str | None = field(default=None, compare=False)
    """File and row that gave the label, for error messages."""


@dataclass(frozen=True)
class Table:
    """A labelled data set. `classes` are in the order of the labels, and nothing re-sorts them."""

    root: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]

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


def read_table(root: Path, *, classes: Sequence[str] | None = None) -> Table:
    """Read a data set, ISIC2019 layout or class folders, whichever `root` holds.

    With `classes` the labels are expressed in that list, matched by name (a class without images is fine). Raises
    DataError if there is nothing to read, or for the first fault found.
    """
    if not root.is_dir():
        raise DataError(f"data folder {root} does not exist", hint="check --data")
    labels_csv = _find_csv(root, "groundtruth")
    table = _read_isic(root, labels_csv, classes) if labels_csv else _read_class_folders(root, classes)
    if not table.samples:
        raise DataError(f"{root} holds no labelled images")
    return table


def _find_csv(root: Path, word: str) -> Path | None:
    found = sorted(p for p in root.glob("*.csv") if word in p.stem.lower().replace("_", ""))
    if len(found) > 1:
        raise DataError(f"{root} holds several {word} tables: {', '.join(p.name for p in found)}", hint="keep one")
    return found[0] if found else None


def _rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The header, and every row with the number of its line in the file (blank lines count, too)."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as f:
            reader = csv.DictReader(f)
            header = list(reader.fieldnames or ())
            return header, [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"table {path} cannot be read: {error}", hint="save it as UTF-8 CSV") from error


def read_isic_labels(path: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """A one-hot table -> (classes in the header's order, {image: class}). Columns without any image are left out.

    Raises DataError with file and row for a row without a class, with two, with a value that is no number, or an image
    that stands in the table twice.
    """
    classes, rows = _one_hot_rows(path)
    return classes, {image: name for image, (name, _) in rows.items()}


def _one_hot_rows(path: Path) -> tuple[tuple[str, ...], dict[str, tuple[str, int]]]:
    """As `read_isic_labels`, but with each image's line in the file."""
    header, rows = _rows(path)
    columns = [name for name in header if name]
    if len(columns) < 3 or columns[0] != "image" or len(set(columns)) < len(columns):
        raise DataError(f"table {path} is no one-hot table", hint="its header must be image,CLASS,CLASS,...")
    if not rows:
        raise DataError(f"table {path} has no rows", hint="it needs one row for each image")
    labels: dict[str, tuple[str, int]] = {}
    for number, row in rows:
        image = row["image"]
        positive = []
        for name in columns[1:]:
            try:
                value = float(row[name])
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"{path} row {number} (image {image}): column {name} is {row[name]!r}, expected 0 or 1"
                ) from error
            if value not in (0.0, 1.0):
                raise DataError(f"{path} row {number} (image {image}): column {name} is {row[name]!r}, expected 0 or 1")
            if value:
                positive.append(name)
        if len(positive) != 1:
            what = f"two labels: {' and '.join(positive)}" if positive else "no label"
            raise DataError(f"{path} row {number}: image {image} has {what}", hint="give every image exactly one class")
        if image in labels:
            first, line = labels[image]
            other = "" if first == positive[0] else f" with other labels ({first} and {positive[0]})"
            raise DataError(f"{path}: image {image} stands in rows {line} and {number}{other}", hint="keep one row")
        labels[image] = positive[0], number
    used = {name for name, _ in labels.values()}
    return tuple(name for name in columns[1:] if name in used), labels


def _read_isic(root: Path, labels_csv: Path, classes: Sequence[str] | None) -> Table:
    own_classes, labels = _one_hot_rows(labels_csv)
    metadata = _read_metadata(root)
    files = _image_files(_image_folder(root))
    chosen = _chosen_classes(own_classes, classes)
    samples, missing = [], []
    for image, (name, number) in labels.items():
        if name not in chosen:
            raise _unknown_class(f"{labels_csv} row {number} (image {image})", name, chosen)
        path = files.get(image)
        if path is None:
            missing.append((number, image))
            continue
        listed = f"{labels_csv} row {number}"
        samples.append(_sample(image, path, chosen[name], metadata.get(image, {}), listed))
    if missing:
        number, image = missing[0]
        raise DataError(
            f"{labels_csv} row {number}: there is no file for image {image}, and for {len(missing) - 1} more, "
            f"in {_image_folder(root)}",
            hint="put the image there, or remove the row",
        )
    _refuse_useless_metadata(root, metadata, any(image in metadata for image in labels))
    return Table(root, tuple(chosen), tuple(samples))


def _read_metadata(root: Path) -> dict[str, dict[str, str]]:
    """{image: row} of the metadata table; empty where there is none.

    What cannot be matched to images is an error and not left out: without its lesions a split would leak.
    """
    path = _find_csv(root, "metadata")
    if path is None:
        return {}
    header, rows = _rows(path)
    if "image" not in header:
        raise DataError(
            f"table {path} has no column 'image'", hint="its header must be image,lesion_id; more columns may follow"
        )
    metadata: dict[str, dict[str, str]] = {}
    lines: dict[str, int] = {}
    for number, row in rows:
        image = row["image"]
        if image in metadata:
            raise DataError(f"{path}: image {image} stands in rows {lines[image]} and {number}", hint="keep one row")
        metadata[image], lines[image] = row, number
    return metadata


def _refuse_useless_metadata(root: Path, metadata: Mapping[str, object], used: bool) -> None:
    if metadata and not used:
        raise DataError(
            f"table {_find_csv(root, 'metadata')} names none of the images in {root}; "
            f"its first is {next(iter(metadata))!r}",
            hint="its column 'image' must hold the names of the images without suffix",
        )


def _sample(image: str, path: Path, label: int, metadata: Mapping[str, str], listed: str | None = None) -> Sample:
    lesion = metadata.get("group_id") or metadata.get("lesion_id") or f"image:{image}"
    return Sample(image, path, label, lesion, metadata.get("source") or None, listed)


def _image_folder(root: Path) -> Path:
    if (root / "images").is_dir():
        return root / "images"
    folders = [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    return folders[0] if len(folders) == 1 else root


def _image_files(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            if path.stem in files:
                raise DataError(
                    f"{path} and {files[path.stem].name} are both image {path.stem}", hint="remove one of them"
                )
            files[path.stem] = path
    return files


def _chosen_classes(own: Sequence[str], wanted: Sequence[str] | None) -> dict[str, int]:
    return {name: k for k, name in enumerate(wanted if wanted is not None else own)}


def _unknown_class(where: str, name: str, chosen: Mapping[str, int]) -> DataError:
    return DataError(f"{where}: unknown class {name!r}", hint=f"the classes here are {', '.join(chosen)}")


def _read_class_folders(root: Path, classes: Sequence[str] | None) -> Table:
    folders = [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    if len(folders) < 2:
        raise DataError(
            f"{root} is no data set: neither a GroundTruth.csv nor two or more class folders",
            hint="see 'Your own images' in the README",
        )
    chosen = _chosen_classes([p.name for p in folders], classes)
    metadata = _read_metadata(root)
    samples: dict[str, Sample] = {}
    matched = False
    for folder in folders:
        if folder.name not in chosen:
            raise _unknown_class(f"folder {folder}", folder.name, chosen)
        before = len(samples)
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
                continue
            relative = path.relative_to(root)
            image = relative.with_suffix("").as_posix()
            if image in samples:
                raise DataError(
                    f"{path} and {samples[image].path.name} are both image {image}", hint="remove one of them"
                )
            names = (relative.as_posix(), image, path.name, path.stem)
            row = next((metadata[name] for name in names if name in metadata), None)
            matched = matched or row is not None
            samples[image] = _sample(image, path, chosen[folder.name], row or {})
        if len(samples) == before:
            raise DataError(f"class folder {folder} holds no image", hint="remove it, or put images there")
    _refuse_useless_metadata(root, metadata, matched)
    _refuse_one_picture_in_two_classes(list(samples.values()), tuple(chosen))
    return Table(root, tuple(chosen), tuple(samples.values()))


def _refuse_one_picture_in_two_classes(samples: Sequence[Sample], classes: Sequence[str]) -> None:
    """Only files of the same name and size are hashed: a copy that was renamed too is for `data check` to find."""
    candidates: dict[tuple[str, int], list[Sample]] = {}
    for sample in samples:
        candidates.setdefault((sample.path.name, sample.path.stat().st_size), []).append(sample)
    for group in candidates.values():
        if len({sample.label for sample in group}) < 2:
            continue
        by_content: dict[str, Sample] = {}
        for sample in group:
            first = by_content.setdefault(sha256_file(sample.path), sample)
            if first.label != sample.label:
                raise DataError(
                    f"one picture has two labels: {first.path} ({classes[first.label]}) and "
                    f"{sample.path} ({classes[sample.label]})",
                    hint="keep it in one class folder",
                )
