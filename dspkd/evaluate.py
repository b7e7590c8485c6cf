"""Judge a network, or an artifact on its own runtime, on a data set; classify single pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dspkd.data.pixels import cached_pixels
from dspkd.data.sources import Sample, read_table
from dspkd.data.split import PARTS, indices, load_split
from dspkd.errors import DataError
from dspkd.preprocess import Preprocess, load_pixels
from dspkd.student import Student

__all__ = ["Classifier", "Evaluation", "evaluate", "predict", "predictions_csv", "student_classifier"]


@dataclass(frozen=True, slots=True)
class Classifier:
    """Anything that gives probabilities: `run` takes uint8 pixels (N, size, size, 3) and returns float32 (N, K)."""

    name: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    run: Callable[[np.ndarray], np.ndarray]
    caution: str | None = None
    """What has to stand beside its figures (`dspkd.protocol`)."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics (see `dspkd.train.metrics.summarise`) and what they were computed from."""

    metrics: dict[str, Any]
    samples: tuple[Sample, ...]
    probabilities: np.ndarray
    classes: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    """What was left out of the data set."""

    def predictions_csv(self) -> str:
        return predictions_csv(self.samples, self.probabilities, self.classes)


def student_classifier(student: Student, *, device: str = "cpu") -> Classifier:
    from dspkd.train.task import predict_probabilities

    model = student.model.to(device)

    def run(pixels: np.ndarray) -> np.ndarray:
        probabilities: np.ndarray = predict_probabilities(model, student.card.preprocess, pixels, device=device)
        return probabilities

    card = student.card
    return Classifier(str(student.path), card.classes, card.preprocess, run, card.caution)


def evaluate(
    classifier: Classifier,
    root: Path,
    *,
    split: Path | None = None,
    part: str = "all",
    cache_dir: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Evaluation:
    """Metrics with 95 % intervals on the images in `root`, matched to the classifier's classes by name.

    `part` is all, train, val or test of the stored `split`, or without one of the data set's own parts. Also gives the
    metrics per source where the table names sources. Raises DataError for a class that the classifier does not know.
    """
    from dspkd.train.metrics import summarise

    table = read_table(root, classes=classifier.classes)
    if part == "all":
        positions = np.arange(len(table))
    elif split is None and part in PARTS and any(sample.part for sample in table.samples):
        positions = np.flatnonzero([sample.part == part for sample in table.samples])
    elif split is None:
        raise DataError(f"part {part!r} needs a stored split", hint="give --split FILE")
    else:
        positions = indices(load_split(split, table), table, part)
    if not len(positions):
        raise DataError(f"the {part} part of {root} is empty", hint="choose another --part")
    pixels = cached_pixels(table, classifier.preprocess, positions=positions, cache_dir=cache_dir, progress=progress)
    batches = []
    for start in range(0, len(positions), 64):
        batches.append(classifier.run(pixels[positions[start : start + 64]]))
        if progress:
            progress(min(start + 64, len(positions)), len(positions), "classifying")
    probabilities = np.concatenate(batches)
    samples = tuple(table.samples[int(i)] for i in positions)
    labels = table.labels[positions]
    metrics = summarise(labels, probabilities, table.classes, groups=[s.group for s in samples])
    sources = sorted({s.source for s in samples if s.source})
    if len(sources) > 1:
        metrics["by_source"] = {}
        for source in sources:
            own = np.array([s.source == source for s in samples])
            summary = summarise(labels[own], probabilities[own], table.classes)
            metrics["by_source"][source] = {k: summary[k] for k in ("n", "accuracy", "balanced_accuracy", "macro_f1")}
    return Evaluation(metrics, samples, probabilities, table.classes, table.remarks)


def predict(classifier: Classifier, images: Sequence[Path]) -> list[dict[str, Any]]:
    """For each picture its classes with probabilities, the likeliest first. Raises DataError for an unreadable one."""
    results = []
    for path in images:
        probabilities = classifier.run(load_pixels(path, classifier.preprocess)[None])[0]
        order = np.argsort(-probabilities, kind="stable")
        results.append(
            {
                "image": str(path),
                "class": classifier.classes[order[0]],
                "probabilities": {classifier.classes[k]: float(probabilities[k]) for k in order},
            }
        )
    return results


def predictions_csv(
    samples: Sequence[Sample],
    probabilities: np.ndarray,
    classes: Sequence[str],
    *,
    known: Collection[str] | None = None,
) -> str:
    """One row per image: image, lesion, source, true label, predicted label, probability of every class.

    For a split that leaks, `known` are the images whose lesion was learned from; a last column says which they are.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    marked = [] if known is None else ["lesion_was_learned_from"]
    known_ids = frozenset(known or ())
    writer.writerow(["image", "lesion", "source", "label", "predicted", *(f"p_{name}" for name in classes), *marked])
    for sample, row in zip(samples, probabilities, strict=True):
        predicted = classes[int(row.argmax())]
        writer.writerow(
            [
                sample.image_id,
                sample.group,
                sample.source or "",
                classes[sample.label],
                predicted,
                *(f"{p:.6f}" for p in row),
                *([] if known is None else [int(sample.image_id in known_ids)]),
            ]
        )
    return text.getvalue()
