"""Names by which the subjects of a bench can be told apart."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from dspkd_bench.subjects import Subject

__all__ = ["absolute_path", "unique_names", "unique_tails"]


def unique_names(subjects: Sequence[Subject]) -> list[str]:
    """Names as they are; those that several subjects share with as much of the end of the path as tells them apart."""
    sharing = Counter(subject.name for subject in subjects)
    tails = {
        name: unique_tails({absolute_path(subject.path) for subject in subjects if subject.name == name})
        for name, number in sharing.items()
        if number > 1
    }
    found = []
    for subject in subjects:
        tail = tails.get(subject.name, {}).get(absolute_path(subject.path))
        found.append(f"{subject.name} ({tail})" if tail else subject.name)
    return found


def unique_tails(paths: Collection[Path]) -> dict[Path, str]:
    """For each the fewest last parts that no other one ends in; the whole path where another one ends in that."""
    tails = {}
    for path in paths:
        ends = ["/".join(path.parts[-depth:]) for depth in range(1, len(path.parts))] + [str(path)]
        others = ["/".join(("", *other.parts[1:])) for other in paths if other != path]
        tails[path] = next(end for end in ends if end == str(path) or not any(o.endswith(f"/{end}") for o in others))
    return tails


def absolute_path(path: Path) -> Path:
    """Without following links: two links to one folder are two names that somebody gave."""
    return Path(os.path.abspath(path))  # noqa: PTH100
