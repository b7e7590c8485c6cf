"""A deployed model against its original on the same images: paired differences, with intervals over lesions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["compare_predictions", "screening_threshold"]

REPETITIONS = 1000
SENSITIVITY = 0.9
MELANOMA = "MEL"


def compare_predictions(
    labels: np.ndarray,
    reference: np.ndarray,
    deployed: np.ndarray,
    groups: Sequence[str],
    classes: Sequence[str],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Figures of both, and deployed minus reference with a 95 % percentile interval that resamples lesions.

    labels (N,), probabilities (N, K), `groups` one lesion id per image. Metrics: accuracy, balanced accuracy,
    expected calibration error (15 bins of the top-1 probability) and, where a class is called MEL, its sensitivity and
    specificity at one fixed threshold: the one at which `reference` finds 90 % of the melanomas.
    """
    from dspkd.train.metrics import lesion_draws

    group_index, draws = lesion_draws(groups, REPETITIONS, seed=seed)
    # Row 0 counts every lesion once: the figures themselves.
    weights = np.vstack([np.ones(draws.shape[1], dtype=draws.dtype), draws])
    threshold = screening_threshold(labels, reference, classes)
    before, after = (
        _metrics(labels, probabilities, group_index, weights, classes, threshold)
        for probabilities in (reference, deployed)
    )
    result: dict[str, Any] = {
        "method": f"paired, 95 % percentile bootstrap over lesions, {REPETITIONS} repetitions",
        "melanoma_threshold": threshold,
        "metrics": {},
    }
    for name, values in before.items():
        difference = after[name] - values
        low, high = np.nanpercentile(difference[1:], [2.5, 97.5])
        result["metrics"][name] = {
            "pytorch": float(values[0]),
            "deployed": float(after[name][0]),
            "difference": float(difference[0]),
            "interval": [float(low), float(high)],
        }
    return result


def screening_threshold(labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> float | None:
    """A threshold on the probability of MEL that finds 90 % of the melanomas; None without any.

    It lies halfway between the last score that must be found and the next lower one of any image, so that rounding
    moves no image over it.
    """
    if MELANOMA not in classes:
        return None
    scores = probabilities[:, list(classes).index(MELANOMA)]
    melanomas = np.sort(scores[labels == list(classes).index(MELANOMA)])
    if not len(melanomas):
        return None
    last = melanomas[int(np.floor((1 - SENSITIVITY) * len(melanomas)))]
    return float((last + scores[scores < last].max(initial=0.0)) / 2)


def _metrics(
    labels: np.ndarray,
    probabilities: np.ndarray,
    group_index: np.ndarray,
    weights: np.ndarray,
    classes: Sequence[str],
    threshold: float | None,
) -> dict[str, np.ndarray]:
    """Each metric for each row of `weights` (R, G), which says how often a lesion counts."""
    from dspkd.train.metrics import calibration_errors, weighted_headline

    predictions = probabilities.argmax(1)
    headline = weighted_headline(labels, predictions, group_index, weights, len(classes))
    metrics = {name: headline[name] for name in ("accuracy", "balanced_accuracy")}
    per_image = weights[:, group_index]
    metrics["calibration_error"] = calibration_errors(probabilities, predictions == labels, per_image)
    if threshold is not None:
        melanoma = labels == list(classes).index(MELANOMA)
        flagged = probabilities[:, list(classes).index(MELANOMA)] >= threshold
        with np.errstate(invalid="ignore"):  # NaN where a draw has no image of the kind
            metrics["melanoma_sensitivity"] = per_image @ (flagged & melanoma) / (per_image @ melanoma)
            metrics["melanoma_specificity"] = per_image @ (~flagged & ~melanoma) / (per_image @ ~melanoma)
    return metrics
