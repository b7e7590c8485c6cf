"""What lies in a data folder, beyond what its table says: files too many, links, names and permissions that harm."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from dspkd.data.formats.files import is_picture
from dspkd.data.table import Fault, Report, Severity, Table
from dspkd.npz_images import picture_file

__all__ = ["report_files"]

_TABLES_AND_NOTES = frozenset({".csv", ".tab", ".tsv", ".npz", ".txt", ".md", ".json"})


def report_files(root: Path, table: Table, report: Report) -> None:
    """Walks `root` without following links."""
    folder = root if root.is_dir() else root.parent
    files = list(_walk(folder, report))
    listed = {picture_file(sample.path) for sample in table.samples}
    extra = [p for p in files if is_picture(p) and p not in listed]
    other = [p for p in files if not is_picture(p) and p.suffix.lower() not in _TABLES_AND_NOTES and not p.is_symlink()]
    if root.is_dir():
        _say(report, "extra-file", "warning", folder, extra, "pictures that no table lists; they are not used")
        _say(
            report, "other-file", "note", folder, other, "files that are neither pictures nor tables; they are not used"
        )
    _report_links(folder, files, report)
    _report_clashes(folder, files, report)
    odd = [p for p in files if not str(p.relative_to(folder)).isascii()]
    _say(report, "non-ascii-name", "note", folder, odd, "names beyond ASCII, which some archives and devices spoil")
    closed = [p for p in files if not _readable(p)]
    hint = "let it be read: chmod u+r FILE"
    _say(report, "no-permission", "error", folder, closed, "files that may not be read", hint)


def _walk(folder: Path, report: Report) -> Iterator[Path]:
    def closed(error: OSError) -> None:
        name = str(error.filename)
        report(Fault("no-permission", "error", f"folder {name} cannot be read", "chmod u+rx FOLDER", (name,)))

    for where, folders, names in os.walk(folder, onerror=closed):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        linked = [name for name in folders if (Path(where) / name).is_symlink()]
        for name in sorted([*names, *linked]):
            if not name.startswith("."):
                yield Path(where) / name


def _say(
    report: Report, kind: str, severity: Severity, root: Path, paths: Sequence[Path], what: str, hint: str | None = None
) -> None:
    if paths:
        names = tuple(p.relative_to(root).as_posix() for p in paths)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        report(Fault(kind, severity, f"{names[0]}{more}: {what}", hint, names))


def _report_links(folder: Path, files: Sequence[Path], report: Report) -> None:
    inside = folder.resolve()
    outward = [p for p in files if p.is_symlink() and not p.resolve().is_relative_to(inside)]
    what = "links that lead out of the folder; a copy of it may lack them"
    _say(report, "link-out-of-folder", "warning", folder, outward, what, "put the file itself there")


def _report_clashes(folder: Path, files: Sequence[Path], report: Report) -> None:
    alike: dict[str, list[Path]] = {}
    for path in files:
        name = unicodedata.normalize("NFC", path.relative_to(folder).as_posix()).casefold()
        alike.setdefault(name, []).append(path)
    for paths in alike.values():
        if len(paths) > 1:
            names = tuple(p.relative_to(folder).as_posix() for p in paths)
            what = f"{' and '.join(names)} differ in upper and lower case alone: Windows and macOS keep one of them"
            report(Fault("case-clash", "warning", what, "rename one, in the table too", names))


def _readable(path: Path) -> bool:
    try:
        # Root may read everything, and the next user will not.
        return os.access(path, os.R_OK) and bool(path.stat().st_mode & 0o444)
    except OSError:
        return path.is_symlink()  # leads nowhere; that is said where it is decoded
