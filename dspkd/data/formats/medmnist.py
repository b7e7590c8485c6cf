"""MedMNIST: one .npz with images and labels of a training, a validation and a test part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dspkd.data.formats.ham10000 import CLASSES as HAM10000_CLASSES
from dspkd.data.formats.tables import chosen_classes, unknown_class
from dspkd.data.table import PARTS, Report, Sample, Table
from dspkd.errors import DataError
from dspkd.npz_images import array_names, array_shape, read_array

__all__ = ["find_medmnist", "read_medmnist"]

LAYOUT = "MedMNIST"


def find_medmnist(root: Path) -> Path | None:
    found = sorted(root.glob("*.npz"))
    if len(found) > 1:
        raise DataError(
            f"{root} holds several archives: {', '.join(p.name for p in found)}",
            hint=f"give the one that is meant: --data {found[0]}",
        )
    return found[0] if found else None


def read_medmnist(archive: Path, classes: Sequence[str] | None, report: Report) -> Table:
    """Classes are numbered; dermamnist's are called what HAM10000, its source, calls them. The archive says nothing of
    lesions, so each picture counts as its own. No picture is read here.
    """
    names = array_names(archive)
    parts = [part for part in PARTS if f"{part}_images" in names and f"{part}_labels" in names]
    if not parts:
        raise DataError(
            f"archive {archive} holds {', '.join(names) or 'nothing'}",
            hint="a MedMNIST archive has train_images and train_labels, and the same for val and test",
        )
    labels = {part: _labels(archive, part) for part in parts}
    highest = max(int(part_labels.max(initial=0)) for part_labels in labels.values())
    own = HAM10000_CLASSES if archive.stem.startswith("dermamnist") else tuple(map(str, range(highest + 1)))
    if highest >= len(own):
        raise DataError(f"{archive} has the label {highest}, and its classes are 0 to {len(own) - 1}")
    chosen = chosen_classes(own, classes)
    samples = []
    for part in parts:
        for index, number in enumerate(labels[part].tolist()):
            image, where = f"{part}/{index}", f"{archive} {part}_labels[{index}]"
            if own[number] not in chosen:
                report(unknown_class(where, own[number], chosen, image))
                continue
            path = archive / f"{part}_images" / str(index)
            samples.append(Sample(image, path, chosen[own[number]], f"image:{image}", None, where, part))
    return Table(archive, tuple(chosen), tuple(samples), LAYOUT)


def _labels(archive: Path, part: str) -> np.ndarray:
    """int64 (N,)"""
    images = array_shape(archive, f"{part}_images")
    labels = read_array(archive, f"{part}_labels")
    if labels.dtype.kind not in "iu" or labels.size != labels.shape[0]:
        raise DataError(
            f"{archive}: {part}_labels is {labels.dtype} {labels.shape}, not one class number for each picture",
            hint="sets with several labels or targets that are no classes cannot be used",
        )
    if len(labels) != images[0]:
        raise DataError(
            f"{archive}: {part} has {images[0]} pictures and {len(labels)} labels", hint="download it again"
        )
    return labels.reshape(-1).astype(np.int64)
