"""Pictures in folders, found by the names that tables give them."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path

from dspkd.data.table import IMAGE_SUFFIXES, Fault, Report

__all__ = ["ImageFiles", "fitting", "image_folder", "is_hidden", "is_picture", "subfolders"]


def is_picture(path: Path) -> bool:
    """By name: hidden files are none."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def is_hidden(relative: Path) -> bool:
    """Whether a file lies in a hidden folder, as the copies that Jupyter and others keep do, or is hidden itself."""
    return any(part.startswith(".") for part in relative.parts)


def subfolders(root: Path) -> list[Path]:
    return [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")]


def fitting(paths: Sequence[Path], word: str | None, others: Collection[str]) -> list[Path]:
    """Those whose name has `word`; where there are none, those that have none of the `others` either."""
    named = [p for p in paths if word is not None and word in p.name.lower()]
    return named or [p for p in paths if word is None or not any(other in p.name.lower() for other in others)]


def image_folder(root: Path, word: str | None = None, others: Collection[str] = ()) -> Path:
    """Where the pictures of a table in `root` lie: images/, the only folder (that is `fitting`), or `root` itself.

    An archive that was unpacked into a folder of its own name is looked through.
    """
    if (root / "images").is_dir():
        return root / "images"
    folders = fitting(subfolders(root), word, others)
    folder = folders[0] if len(folders) == 1 else root
    inner = [p for p in subfolders(folder) if p.name == folder.name]
    return inner[0] if inner else folder


def _composed(name: str) -> str:
    """macOS stores an umlaut as two characters, tables mostly hold one."""
    return unicodedata.normalize("NFC", name)


class ImageFiles:
    """The pictures of some folders by their name without suffix. If none is `needed`, those that are not there get the
    address where they would be expected.
    """

    def __init__(self, folders: Sequence[Path], report: Report, *, needed: bool = True) -> None:
        self._files: dict[str, Path] = {}
        self._instead = None if needed else folders[0]
        for folder in folders:
            for path in sorted(folder.iterdir()):
                if not is_picture(path):
                    continue
                name = _composed(path.stem)
                if name in self._files:
                    what = f"{path} and {self._files[name].name} are both image {path.stem}"
                    report(Fault("two-files-of-one-image", "error", what, "remove one of them", (path.name,)))
                    continue
                self._files[name] = path

    def find(self, image: str) -> Path | None:
        found = self._files.get(_composed(image))
        return self._instead / f"{image}.jpg" if found is None and self._instead else found
