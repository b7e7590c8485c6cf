"""Classification metrics with lesion-clustered confidence intervals.

Everything follows from the confusion matrix (paper equations 9 to 14, one class against the rest). A class without any
image in the set has no recall, and is left out of the averages over classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = [
    "bootstrap_intervals",
    "calibration",
    "calibration_errors",
    "confusion_matrix",
    "headline_metrics",
    "lesion_draws",
    "per_class_metrics",
    "summarise",
    "weighted_confusions",
    "weighted_headline",
]

CALIBRATION_BINS = 15


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts (K, K): rows are the truth, columns the prediction."""
    import torch
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    matrix = multiclass_confusion_matrix(
        torch.as_tensor(np.asarray(predictions)), torch.as_tensor(np.asarray(labels)), num_classes=num_classes
    )
    return matrix.numpy()


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """0/0 is 0: a class that is never predicted has precision 0."""
    return np.divide(numerator, denominator, out=np.zeros(numerator.shape), where=denominator > 0)


def per_class_metrics(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays (..., K) from confusion matrices (..., K, K)."""
    hits = np.diagonal(matrix, axis1=-2, axis2=-1).astype(float)
    support, predicted = matrix.sum(-1).astype(float), matrix.sum(-2).astype(float)
    total = matrix.sum((-2, -1)).astype(float)[..., None]
    negatives = total - support
    return {
        "precision": _divide(hits, predicted),
        "recall": _divide(hits, support),
        "specificity": _divide(negatives - (predicted - hits), negatives),
        "f1": _divide(2 * hits, support + predicted),
        "support": support,
    }


def headline_metrics(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays (...) from confusion matrices (..., K, K)."""
    per_class = per_class_metrics(matrix)
    present = per_class["support"] > 0
    count = np.maximum(present.sum(-1), 1)

    def average(name: str) -> np.ndarray:
        return np.where(present, per_class[name], 0.0).sum(-1) / count

    return {
        "accuracy": _divide(np.trace(matrix, axis1=-2, axis2=-1).astype(float), matrix.sum((-2, -1)).astype(float)),
        "balanced_accuracy": average("recall"),
        "macro_precision": average("precision"),
        "macro_specificity": average("specificity"),
        "macro_f1": average("f1"),
    }


def lesion_draws(groups: Sequence[str], repetitions: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A bootstrap that resamples lesions: the lesion of each image (N,), and how often each lesion counts in each
    repetition (R, G).

    Images of one lesion succeed and fail together; an interval that resamples images is too narrow.
    """
    names, group_index = np.unique(np.asarray(groups), return_inverse=True)
    rng = np.random.Generator(np.random.PCG64(seed))
    return group_index, rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=repetitions)


def weighted_confusions(
    labels: np.ndarray, predictions: np.ndarray, group_index: np.ndarray, weights: np.ndarray, num_classes: int
) -> np.ndarray:
    """Confusion matrices (R, K, K), one for each row of `weights` (R, G): how often each lesion counts.

    labels, predictions and group_index are (N,).
    """
    per_group = np.zeros((weights.shape[1], num_classes * num_classes), dtype=np.float32)
    np.add.at(per_group, (group_index, np.asarray(labels) * num_classes + np.asarray(predictions)), 1)
    matrices = (weights.astype(np.float32, copy=False) @ per_group).reshape(len(weights), num_classes, num_classes)
    return np.rint(matrices)


def weighted_headline(
    labels: np.ndarray, predictions: np.ndarray, group_index: np.ndarray, weights: np.ndarray, num_classes: int
) -> dict[str, np.ndarray]:
    """The headline metrics of `weighted_confusions`, each (R,)."""
    return headline_metrics(weighted_confusions(labels, predictions, group_index, weights, num_classes))


def bootstrap_intervals(
    labels: np.ndarray,
    predictions: np.ndarray,
    groups: Sequence[str],
    num_classes: int,
    *,
    repetitions: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Percentile intervals of the headline metrics over `lesion_draws`."""
    group_index, weights = lesion_draws(groups, repetitions, seed=seed)
    tail = 100 * (1 - level) / 2
    return {
        name: [float(v) for v in np.percentile(values, [tail, 100 - tail])]
        for name, values in weighted_headline(labels, predictions, group_index, weights, num_classes).items()
    }


def _confidence(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Top-1 probability of each image and its bin, (N,) both. What is no number counts as no confidence."""
    top = np.nan_to_num(np.asarray(probabilities, dtype=float).max(1), nan=0.0).clip(0.0, 1.0)
    return top, np.minimum((top * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)


def calibration_errors(probabilities: np.ndarray, hits: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error of the top-1 probability, 15 equal bins (Guo et al. 2017, equation 5).

    probabilities (N, K), `hits` (N,) where the answer was right, `weights` (R, N) how often each image counts -> (R,).
    """
    confidence, bins = _confidence(probabilities)
    gaps = [np.abs((weights * (hits - confidence))[:, bins == k].sum(1)) for k in range(CALIBRATION_BINS)]
    return np.sum(gaps, axis=0) / weights.sum(1)


def calibration(probabilities: np.ndarray, hits: np.ndarray) -> dict[str, Any]:
    """What a reliability diagram shows, ready for JSON: `ece` and the `bins` it is made of.

    probabilities (N, K), `hits` (N,). A bin without images has None for its confidence and accuracy.
    """
    confidence, bins = _confidence(probabilities)
    hits = np.asarray(hits, dtype=float)
    rows = []
    for k in range(CALIBRATION_BINS):
        own = bins == k
        rows.append(
            {
                "low": k / CALIBRATION_BINS,
                "high": (k + 1) / CALIBRATION_BINS,
                "n": int(own.sum()),
                "confidence": float(confidence[own].mean()) if own.any() else None,
                "accuracy": float(hits[own].mean()) if own.any() else None,
            }
        )
    return {"ece": float(calibration_errors(probabilities, hits, np.ones((1, len(hits))))[0]), "bins": rows}


def summarise(
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
) -> dict[str, Any]:
    """All metrics of one evaluation, ready for JSON.

    labels (N,), probabilities (N, K). With `groups` (one lesion id per image) also 95 % intervals. Fractions, not
    percent.
    """
    predictions = np.asarray(probabilities).argmax(1)
    matrix = confusion_matrix(labels, predictions, len(classes))
    per_class = per_class_metrics(matrix)
    picked = np.clip(np.asarray(probabilities)[np.arange(len(labels)), labels], 1e-12, None)
    summary: dict[str, Any] = {
        "n": len(labels),
        **{name: float(value) for name, value in headline_metrics(matrix).items()},
        "loss": float(-np.log(picked).mean()),
        "per_class": {
            name: {
                metric: int(values[k]) if metric == "support" else float(values[k])
                for metric, values in per_class.items()
            }
            for k, name in enumerate(classes)
        },
        "confusion": matrix.tolist(),
        "calibration": calibration(probabilities, predictions == np.asarray(labels)),
    }
    if groups is not None:
        summary["intervals"] = bootstrap_intervals(labels, predictions, groups, len(classes))
        summary["interval_method"] = "95 % percentile bootstrap over lesions, 1000 repetitions"
    return summary
