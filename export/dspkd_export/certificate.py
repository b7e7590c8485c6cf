"""Proof, on the target's own runtime and over a whole set of images, that an artifact answers as the student does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dspkd.runtimes import LoadedModel
from dspkd_export.bounds import BOUNDS, DEFAULT_MARGIN
from dspkd_export.comparison import compare_predictions

__all__ = ["Images", "certify", "not_certified"]

BATCH = 32
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "intervals", "calibration")

Predict = Callable[[np.ndarray], np.ndarray]
Progress = Callable[[int, int, str], None]


class Images:
    """The images of a certificate: uint8 pixels (N, H, W, 3), labels (N,), ids and lesions."""

    def __init__(
        self, pixels: np.ndarray, labels: np.ndarray, image_ids: Sequence[str], groups: Sequence[str], what: str
    ) -> None:
        self.pixels, self.labels, self.image_ids, self.groups, self.what = pixels, labels, image_ids, groups, what

    def __len__(self) -> int:
        return len(self.labels)


def certify(
    student: Predict,
    deployed: Mapping[str, LoadedModel],
    images: Images,
    classes: Sequence[str],
    precision: str,
    progress: Progress | None = None,
    *,
    margin: float = DEFAULT_MARGIN,
) -> dict[str, Any]:
    """Compare PyTorch with every model file of an artifact over all `images`; the worst file decides.

    `student` takes uint8 pixels; `deployed` maps a file's name to the loaded model. The result is JSON: number of
    images, top-1 agreement, the images whose class flipped, largest and mean difference of a probability, the
    metrics of both with their paired differences, the runtime, the bounds and whether they hold. `files` has the same
    of each file, its own metrics in `deployed` among it, without the paired differences.

    It passes if the bounds of the precision hold and balanced accuracy falls by no more than `margin`. With few images
    the interval of that difference may reach below the margin; `non_inferiority` says whether it does.
    """
    from dspkd.train.metrics import summarise

    reference = np.concatenate([student(images.pixels[i : i + BATCH]) for i in range(0, len(images), BATCH)])
    expected = summarise(images.labels, reference, classes, groups=images.groups)
    bound = BOUNDS[precision]
    files = {}
    for name, model in deployed.items():
        parts = []
        for start in range(0, len(images), model.batch):
            parts.append(model.answer(images.pixels[start : start + model.batch]))
            if progress:
                progress(min(start + model.batch, len(images)), len(images), f"certifying {name}")
        files[name] = _compare(reference, np.concatenate(parts), images, classes) | {"runtime": model.runtime}
    worst = min(files.values(), key=lambda f: (f["top1_agreement"], -f["max_abs_difference"]))
    drops = [f["paired"]["metrics"]["balanced_accuracy"] for f in files.values()]
    non_inferior = all(drop["difference"] >= -margin for drop in drops)
    return {
        "images": images.what,
        "n": len(images),
        **worst,
        "pytorch": {key: expected[key] for key in METRICS},
        "files": {name: {k: v for k, v in record.items() if k != "paired"} for name, record in files.items()},
        "bounds": {
            "top1_agreement": bound.top1_agreement,
            "max_abs_difference": bound.max_abs_difference,
            "balanced_accuracy_margin": margin,
        },
        "non_inferiority": {
            "margin": margin,
            "holds": non_inferior,
            "interval_within_margin": all(drop["interval"][0] >= -margin for drop in drops),
        },
        "passed": bool(
            worst["top1_agreement"] >= bound.top1_agreement
            and all(f["finite"] for f in files.values())
            and (
                bound.max_abs_difference is None
                or max(f["max_abs_difference"] for f in files.values()) <= bound.max_abs_difference
            )
            and non_inferior
        ),
    }


def not_certified(reason: str, stand_in: dict[str, Any] | None) -> dict[str, Any]:
    """The certificate of what cannot run here: neither passed nor failed. `stand_in` is the certificate of what it was
    made from, on a runtime that is here; if that failed, the artifact fails too.
    """
    failed = stand_in is not None and not stand_in["passed"]
    return {"passed": False if failed else None, "not_run": reason, "n": 0, "stand_in": stand_in}


def _compare(reference: np.ndarray, got: np.ndarray, images: Images, classes: Sequence[str]) -> dict[str, Any]:
    from dspkd.train.metrics import summarise

    flipped = np.flatnonzero(reference.argmax(1) != got.argmax(1)).tolist()
    # A NaN or an infinity from the runtime must fail the bounds, and JSON has neither.
    difference = np.nan_to_num(np.abs(reference.astype(np.float64) - got.astype(np.float64)), nan=1.0, posinf=1.0)
    summary = summarise(images.labels, got, classes, groups=images.groups)
    return {
        "finite": bool(np.isfinite(got).all()),
        "max_abs_difference": float(difference.max()),
        "mean_abs_difference": float(difference.mean()),
        "top1_agreement": 1.0 - len(flipped) / len(reference),
        "flipped": [images.image_ids[i] for i in flipped],
        "deployed": {key: summary[key] for key in METRICS},
        "paired": compare_predictions(images.labels, reference, np.nan_to_num(got), images.groups, classes),
    }
