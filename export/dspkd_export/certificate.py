"""Proof, on the target's own runtime and over a whole set of images, that an artifact answers as the student does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dspkd.runtimes import LoadedModel, to_input

__all__ = ["BOUNDS", "Images", "certify"]

BATCH = 32
# precision -> (least share of images whose top-1 class agrees, largest difference of a probability)
BOUNDS: dict[str, tuple[float, float]] = {"fp32": (1.0, 1e-4)}

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
    deployed: dict[str, LoadedModel],
    images: Images,
    classes: Sequence[str],
    precision: str,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare PyTorch with every model file of an artifact over all `images`; the worst file decides.

    `student` takes uint8 pixels; `deployed` maps a file's name to the loaded model. The result is JSON: number of
    images, top-1 agreement, the images whose class flipped, largest and mean difference of a probability, accuracy
    and balanced accuracy of both, the runtime, the bounds and whether they hold.
    """
    from dspkd.train.metrics import summarise

    reference = np.concatenate([student(images.pixels[i : i + BATCH]) for i in range(0, len(images), BATCH)])
    expected = summarise(images.labels, reference, classes, groups=images.groups)
    least_agreement, largest_difference = BOUNDS[precision]
    files = {}
    for name, model in deployed.items():
        parts = []
        for start in range(0, len(images), BATCH):
            parts.append(model.run(to_input(images.pixels[start : start + BATCH])))
            if progress:
                progress(min(start + BATCH, len(images)), len(images), f"certifying {name}")
        files[name] = _compare(reference, np.concatenate(parts), images, classes) | {"runtime": model.runtime}
    worst = min(files.values(), key=lambda f: (f["top1_agreement"], -f["max_abs_difference"]))
    keys = ("accuracy", "balanced_accuracy", "macro_f1", "intervals")
    return {
        "images": images.what,
        "n": len(images),
        **worst,
        "pytorch": {key: expected[key] for key in keys},
        "files": {name: {k: v for k, v in record.items() if k != "deployed"} for name, record in files.items()},
        "bounds": {"top1_agreement": least_agreement, "max_abs_difference": largest_difference},
        "passed": bool(
            worst["top1_agreement"] >= least_agreement
            and max(f["max_abs_difference"] for f in files.values()) <= largest_difference
        ),
    }


def _compare(reference: np.ndarray, got: np.ndarray, images: Images, classes: Sequence[str]) -> dict[str, Any]:
    from dspkd.train.metrics import summarise

    flipped = np.flatnonzero(reference.argmax(1) != got.argmax(1)).tolist()
    # A NaN or an infinity from the runtime must fail the bounds, and JSON has neither.
    difference = np.nan_to_num(np.abs(reference.astype(np.float64) - got.astype(np.float64)), nan=1.0, posinf=1.0)
    summary = summarise(images.labels, got, classes, groups=images.groups)
    return {
        "max_abs_difference": float(difference.max()),
        "mean_abs_difference": float(difference.mean()),
        "top1_agreement": 1.0 - len(flipped) / len(reference),
        "flipped": [images.image_ids[i] for i in flipped],
        "deployed": {key: summary[key] for key in ("accuracy", "balanced_accuracy", "macro_f1", "intervals")},
    }
