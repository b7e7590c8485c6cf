"""What lies in a data folder, beyond what its table says: files too many, links, names and permissions that harm."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from dspkd.data.formats.files import is_picture
from dspkd.data.table import Fault, Report, Severity, Table
from dspkd.npz_images import picture_file

__all__ = ["report_files"]

_TABLES_AND_NOTES = frozenset({".csv", ".tab", ".tsv", ".npz", ".txt", ".md", ".json"})


def report_files(root: Path, table: Table, report: Report) -> None:
    """Walks a folder `root` without following links. Where `root` is a table, only it and what it lists is looked at:
    the folder that it lies in may be anybody's.
    """
    listed = {picture_file(sample.path) for sample in table.samples}
    if root.is_dir():
        folder, files = root, list(_walk(root, report))
        _report_unused(folder, files, listed, report)
        _report_clashes(folder, files, report)
    else:
        folder, files = root.parent, sorted({root, *listed})
        beside = {p for place in {p.parent for p in listed} for p in place.iterdir() if is_picture(p)}
        _report_clashes(folder, sorted({*files, *beside}), report, of=listed)
    _report_links(folder, files, report)
    odd = [p for p in files if not _name(p, folder).isascii()]
    _say(report, "non-ascii-name", "note", folder, odd, "names beyond ASCII, which some archives and devices spoil")
    _report_closed(folder, files, listed, report)


def _report_unused(folder: Path, files: Sequence[Path], listed: Collection[Path], report: Report) -> None:
    extra = [p for p in files if is_picture(p) and p not in listed]
    other = [p for p in files if not is_picture(p) and p.suffix.lower() not in _TABLES_AND_NOTES and not p.is_symlink()]
    _say(report, "extra-file", "warning", folder, extra, "pictures that no table lists; they are not used")
    _say(report, "other-file", "note", folder, other, "files that are neither pictures nor tables; they are not used")


def _report_closed(folder: Path, files: Sequence[Path], listed: Collection[Path], report: Report) -> None:
    closed = [p for p in files if not _readable(p)]
    what, hint = "files that may not be read", "let it be read: chmod u+r FILE"
    _say(report, "no-permission", "error", folder, [p for p in closed if p in listed], what, hint)
    unused = [p for p in closed if p not in listed]
    _say(report, "no-permission", "warning", folder, unused, f"{what}; no table lists them", hint)


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
        names = tuple(_name(p, root) for p in paths)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        report(Fault(kind, severity, f"{names[0]}{more}: {what}", hint, names))


def _name(path: Path, root: Path) -> str:
    """As it lies in `root`; a table may also list pictures elsewhere."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _report_links(folder: Path, files: Sequence[Path], report: Report) -> None:
    inside = folder.resolve()
    outward = [p for p in files if p.is_symlink() and not p.resolve().is_relative_to(inside)]
    what = "links that lead out of the folder; a copy of it may lack them"
    _say(report, "link-out-of-folder", "warning", folder, outward, what, "put the file itself there")


def _report_clashes(folder: Path, files: Sequence[Path], report: Report, *, of: Collection[Path] | None = None) -> None:
    """With `of` only what clashes with one of those."""
    alike: dict[str, list[Path]] = {}
    for path in files:
        name = unicodedata.normalize("NFC", _name(path, folder)).casefold()
        alike.setdefault(name, []).append(path)
    for paths in alike.values():
        if len(paths) > 1 and (of is None or not set(of).isdisjoint(paths)):
            names = tuple(_name(p, folder) for p in paths)
            what = f"{' and '.join(names)} differ in upper and lower case alone: Windows and macOS keep one of them"
            report(Fault("case-clash", "warning", what, "rename one, in the table too", names))


def _readable(path: Path) -> bool:
    try:
        # Root may read everything, and the next user will not.
        return os.access(path, os.R_OK) and bool(path.stat().st_mode & 0o444)
    except OSError:
        return path.is_symlink()  # leads nowhere; that is said where it is decoded
