"""The finished runs of a comparison as they lie in their folders."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspkd.errors import DataError
from dspkd.student import StudentCard, load_card

__all__ = ["StoredRun", "most_agreed_on", "read_run"]

PREDICTION_COLUMNS = ("image", "lesion", "label", "predicted")


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A finished run as it lies in its folder; a column of its predictions has one entry for each image."""

    card: StudentCard
    predictions: Path
    images: tuple[str, ...]
    lesions: tuple[str, ...]
    labels: tuple[str, ...]
    predicted: tuple[str, ...]
    history: list[dict[str, Any]]

    @property
    def split_sha256(self) -> str | None:
        value: str | None = self.card.data.get("split_sha256")
        return value

    @property
    def judged_on(self) -> tuple[Any, ...]:
        """What the runs of one table have in common."""
        return self.split_sha256, self.card.classes, self.images, self.labels, self.lesions


def most_agreed_on(runs: Sequence[StoredRun]) -> StoredRun:
    """A run that is judged on what most runs are judged on; among equals, the one with the most images."""
    agreeing = Counter(run.judged_on for run in runs)
    return max(runs, key=lambda run: (agreeing[run.judged_on], len(run.images)))


def read_run(folder: Path, part: str) -> StoredRun:
    """A run and its predictions of `part`. Raises DspkdError naming the file that is missing or damaged."""
    card = load_card(folder)
    predictions = folder / f"predictions-{part}.csv"
    images, lesions, labels, predicted = _read_predictions(predictions, card.classes)
    return StoredRun(card, predictions, images, lesions, labels, predicted, _read_history(folder / "metrics.jsonl"))


def _read_predictions(path: Path, classes: Sequence[str]) -> list[tuple[str, ...]]:
    """Image, lesion, true and predicted class of each image, as four columns."""
    try:
        with path.open(newline="", encoding="utf-8") as f:
            rows: list[list[str | None]] = [[row.get(name) for name in PREDICTION_COLUMNS] for row in csv.DictReader(f)]
    except FileNotFoundError as error:
        raise DataError(f"its predictions are missing ({path.name})") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not rows:
        raise DataError(f"{path} holds no predictions")
    for number, row in enumerate(rows, start=1):
        if None in row or not {*row[2:]} <= {*classes}:
            raise DataError(f"{path}: row {number} is no image with a label and a prediction of the run's classes")
    # Interned, since all runs repeat the same names and are held at once.
    return [tuple(sys.intern(str(entry)) for entry in column) for column in zip(*rows, strict=True)]


def _read_history(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    history = []
    for number, line in enumerate(lines, start=1):
        try:
            history.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{path}: line {number} is no JSON, so the file was cut or changed") from error
    return history
