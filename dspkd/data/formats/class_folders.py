"""One folder per class, named like the class, and perhaps a metadata.csv with lesions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dspkd.data.download import HOW_TO_DOWNLOAD
from dspkd.data.formats.files import is_hidden, is_picture, subfolders
from dspkd.data.formats.tables import (
    chosen_classes,
    find_csv,
    make_sample,
    read_metadata,
    report_metadata,
    unknown_class,
)
from dspkd.data.table import Fault, Report, Sample, Table
from dspkd.errors import DataError
from dspkd.fileio import sha256_file

__all__ = ["read_class_folders"]

LAYOUT = "class folders"


def read_class_folders(root: Path, classes: Sequence[str] | None, report: Report) -> Table:
    """Classes are the folders' names, sorted by code point whatever the file system's order."""
    folders = subfolders(root)
    if len(folders) < 2:
        raise DataError(
            f"{root} is no data set: neither a table of labels nor two or more class folders",
            hint=f"see 'Your images' in the README; {HOW_TO_DOWNLOAD}",
        )
    chosen = chosen_classes([p.name for p in folders], classes)
    metadata_csv = find_csv(root, "metadata")
    metadata = read_metadata(metadata_csv, report)
    samples: dict[str, Sample] = {}
    row_of: dict[str, str | None] = {}
    for folder in folders:
        if folder.name not in chosen:
            report(unknown_class(f"folder {folder}", folder.name, chosen, folder.name))
            continue
        before = len(samples)
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(root)
            if not is_picture(path) or is_hidden(relative):
                continue
            image = relative.with_suffix("").as_posix()
            if image in samples:
                what = f"{path} and {samples[image].path.name} are both image {image}"
                report(Fault("two-files-of-one-image", "error", what, "remove one of them", (image,)))
                continue
            names = (relative.as_posix(), image, path.name, path.stem)
            row_of[image] = key = next((name for name in names if name in metadata), None)
            row = {} if key is None else metadata[key]
            samples[image] = make_sample(image, path, chosen[folder.name], row)
        if len(samples) == before:
            what = f"class folder {folder} holds no image"
            report(Fault("empty-class", "error", what, "remove it, or put images there", (folder.name,)))
    remarks = report_metadata(root, metadata_csv, metadata, row_of, report)
    _report_one_picture_in_two_classes(list(samples.values()), tuple(chosen), report)
    return Table(root, tuple(chosen), tuple(samples.values()), LAYOUT, tuple(remarks))


def _report_one_picture_in_two_classes(samples: Sequence[Sample], classes: Sequence[str], report: Report) -> None:
    """Only files of the same name and size are hashed: a copy that was renamed too is for `data check` to find."""
    candidates: dict[tuple[str, int], list[Sample]] = {}
    for sample in samples:
        if sample.path.is_file():
            candidates.setdefault((sample.path.name, sample.path.stat().st_size), []).append(sample)
    for group in candidates.values():
        if len({sample.label for sample in group}) < 2:
            continue
        by_content: dict[str, Sample] = {}
        for sample in group:
            first = by_content.setdefault(sha256_file(sample.path), sample)
            if first.label != sample.label:
                what = (
                    f"one picture has two labels: {first.path} ({classes[first.label]}) and "
                    f"{sample.path} ({classes[sample.label]})"
                )
                images = (first.image_id, sample.image_id)
                report(Fault("one-picture-two-labels", "error", what, "keep it in one class folder", images))
