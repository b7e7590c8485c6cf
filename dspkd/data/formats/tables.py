"""CSV tables and what their columns mean, for every layout that has one."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dspkd.data.table import PARTS, Fault, Report, Sample, Severity
from dspkd.errors import DataError

__all__ = [
    "CsvTable",
    "chosen_classes",
    "csv_files",
    "find_csv",
    "header_of",
    "lesion_of",
    "only_one",
    "part_of",
    "read_csv",
    "read_metadata",
    "report_metadata",
    "report_missing_files",
    "unknown_class",
    "with_clean_label",
]

# The first that the header has. A comma in a header of another delimiter would be misread.
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
_HEADER_BYTES = 65536
_PART_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class CsvTable:
    """Header and rows, each row with the number of its line in the file (blank lines count, too)."""

    path: Path
    header: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, str]], ...]

    def __iter__(self) -> Iterator[tuple[int, dict[str, str]]]:
        return iter(self.rows)


def read_csv(path: Path, report: Report) -> CsvTable:
    """Any UTF-8 table with a header. Raises DataError if it cannot be read; a row with too many fields is left out."""
    try:
        data = path.read_bytes()
        text = _decoded(path, data)
        delimiter = _delimiter(path, text)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        header = tuple(reader.fieldnames or ())
        numbered = [(reader.line_num, row) for row in reader]
    except (OSError, csv.Error) as error:
        raise DataError(f"table {path} cannot be read: {error}", hint="save it as UTF-8 CSV") from error
    _report_writing(path, data, delimiter, numbered, report)
    rows = []
    for number, row in numbered:
        surplus = row.pop(None, None)  # type: ignore[call-overload]
        if surplus:
            what = f"{len(header) + len(surplus)} fields, and the header has {len(header)}"
            hint = f'write a value with a {_DELIMITERS[delimiter]} as "a{delimiter} b"'
            report(Fault("row-too-long", "error", f"{path} row {number} has {what}", hint))
        else:
            rows.append((number, row))
    return CsvTable(path, header, tuple(rows))


def _decoded(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        name, what = ("UTF-16", "is") if _is_utf16(data) else ("WINDOWS-1252", "may be")
        raise DataError(
            f"table {path} cannot be read: line {line} is not UTF-8; the file {what} {name}",
            hint=f"save it as 'CSV UTF-8', or: iconv -f {name} -t UTF-8 {path.name} > NEW.csv",
        ) from error


def _is_utf16(data: bytes) -> bool:
    return data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def _delimiter(path: Path, text: str) -> str:
    """Programs write semicolons where the comma stands in numbers."""
    if path.suffix.lower() in (".tab", ".tsv"):
        return "\t"
    header = next(iter(text[:_HEADER_BYTES].splitlines()), "")
    return next((mark for mark in _DELIMITERS if mark in header), ",")


def _report_writing(
    path: Path, data: bytes, delimiter: str, numbered: Sequence[tuple[int, Mapping[str, object]]], report: Report
) -> None:
    """What other programs may stumble over. It is read correctly here."""
    if delimiter != "," and path.suffix.lower() == ".csv":
        what = f"{path} has {_DELIMITERS[delimiter]}s between its fields; they were read as commas would be"
        report(Fault("delimiter", "note", what))
    if data.startswith(b"\xef\xbb\xbf"):
        report(Fault("byte-order-mark", "note", f"{path} begins with a byte order mark; it was read past"))
    if b"\r\n" in data:
        report(Fault("crlf", "note", f"{path} has Windows line ends (CRLF); they were read as line ends"))
    if b'"' not in data or delimiter != ",":
        return
    quoted = [n for n, row in numbered if any(isinstance(value, str) and "," in value for value in row.values())]
    if quoted:
        what = f"row {quoted[0]}" if len(quoted) == 1 else f"row {quoted[0]} and {len(quoted) - 1} more"
        report(
            Fault("quoted-comma", "note", f"{path} {what}: commas inside quotes; they were read as part of the value")
        )


def header_of(path: Path) -> tuple[str, ...]:
    """The column names alone; empty if the file is no table. Whatever its encoding, so that the reader may name it."""
    try:
        with path.open("rb") as f:
            data = f.read(_HEADER_BYTES)
        text = data.decode("utf-16" if _is_utf16(data) else "utf-8-sig", errors="replace")
        return tuple(next(csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(path, text)), ()))
    except (OSError, csv.Error):
        return ()


def find_csv(root: Path, *words: str) -> Path | None:
    """The one CSV of `root` whose name has all `words`."""
    return only_one(root, csv_files(root, *words), " ".join(words))


def csv_files(root: Path, *words: str) -> list[Path]:
    names = {path: path.stem.lower().replace("_", "") for path in sorted(root.glob("*.csv"))}
    return [path for path, name in names.items() if all(word in name for word in words)]


def only_one(root: Path, found: Sequence[Path], kind: str) -> Path | None:
    if len(found) > 1:
        raise DataError(f"{root} holds several {kind} tables: {', '.join(p.name for p in found)}", hint="keep one")
    return found[0] if found else None


def read_metadata(path: Path | None, report: Report) -> dict[str, dict[str, str]]:
    """{image: row} of a metadata table; empty where there is none.

    What cannot be matched to images is an error and not left out: without its lesions a split would leak.
    """
    if path is None:
        return {}
    table = read_csv(path, report)
    if "image" not in table.header:
        report(
            Fault(
                "metadata-header",
                "error",
                f"table {path} has no column 'image'",
                "its header must be image,lesion_id; more columns may follow",
            )
        )
        return {}
    metadata: dict[str, dict[str, str]] = {}
    lines: dict[str, int] = {}
    for number, row in table:
        image = row["image"]
        if image in metadata:
            what = f"{path}: image {image} stands in rows {lines[image]} and {number}"
            report(Fault("row-twice", "error", what, "keep one row", (image,)))
            continue
        metadata[image], lines[image] = row, number
    return metadata


def report_metadata(
    root: Path,
    path: Path | None,
    metadata: Mapping[str, Mapping[str, str]],
    row_of: Mapping[str, str | None],
    report: Report,
) -> list[str]:
    """How well a metadata table and the images of `root` go together. `row_of`: {image: its key in `metadata`}.

    An image without a row counts as a lesion of its own, and what it shows may then be on both sides of a split. The
    remarks that are returned belong to every result.
    """
    used = {row for row in row_of.values() if row is not None}
    hint = "its column 'image' must hold the names of the images without suffix"
    if metadata and not used:
        what = f"table {path} names none of the images in {root}; its first is {next(iter(metadata))!r}"
        report(Fault("metadata-matches-nothing", "error", what, hint))
    if not used:
        return []
    has_lesions = not {"lesion_id", "group_id"}.isdisjoint(next(iter(metadata.values())))
    without = tuple(image for image, row in row_of.items() if row is None) if has_lesions else ()
    unused = tuple(row for row in metadata if row not in used)
    remarks = []
    if without:
        what = f"table {path} has no row for {_first_and_more(without)}: {len(without)} images count as own lesions"
        report(Fault("image-without-metadata", "warning", what, hint, without))
        remarks = [what]
    if unused:
        # A table of more images than these does no harm, unless its names are what keeps it from fitting.
        severity: Severity = "warning" if without else "note"
        what = f"table {path} has rows of no image here: {_first_and_more(unused)}"
        report(Fault("metadata-without-image", severity, what, hint if without else None, unused))
        if without:
            remarks.append(what)
    return remarks


def _first_and_more(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if names[1:] else "")


def report_missing_files(path: Path, missing: Sequence[tuple[int, str]], folder: Path, report: Report) -> None:
    """`missing`: (row, image) of rows whose picture is not there."""
    if missing:
        number, image = missing[0]
        more = f", and for {len(missing) - 1} more," if len(missing) > 1 else ""
        report(
            Fault(
                "missing-file",
                "error",
                f"{path} row {number}: there is no file for image {image}{more} in {folder}",
                "put the image there, or remove the row",
                tuple(name for _, name in missing),
            )
        )


def lesion_of(image: str, row: Mapping[str, str]) -> str:
    """A space before or after it makes no other lesion, which could then be on both sides of a split."""
    named = ((row.get(column) or "").strip() for column in ("group_id", "lesion_id"))
    return next(filter(None, named), f"image:{image}")


def with_clean_label(row: Mapping[str, str], column: str) -> dict[str, str]:
    return {**row, column: (row[column] or "").strip()}


def part_of(text: str | None, where: str, report: Report) -> str | None:
    """The part that a column `split` names, by any of its usual names."""
    if not text:
        return None
    part = _PART_NAMES.get(text.strip().lower())
    if part is None:
        report(Fault("unknown-part", "error", f"{where}: split is {text!r}", f"write one of {', '.join(PARTS)}"))
    return part


def chosen_classes(own: Sequence[str], wanted: Sequence[str] | None) -> dict[str, int]:
    return {name: k for k, name in enumerate(wanted if wanted is not None else own)}


def unknown_class(where: str, name: str, chosen: Mapping[str, int], image: str) -> Fault:
    message = f"{where}: unknown class {name!r}"
    return Fault("unknown-class", "error", message, f"the classes here are {', '.join(chosen)}", (image,))


def make_sample(
    image: str, path: Path, label: int, row: Mapping[str, str], *, listed: str | None = None, part: str | None = None
) -> Sample:
    return Sample(image, path, label, lesion_of(image, row), row.get("source") or None, listed, part)
