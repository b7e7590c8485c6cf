"""Temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2)."""

from __future__ import annotations

import numpy as np

__all__ = ["fit_temperature", "tempered"]

LOWEST, HIGHEST = 0.05, 20.0
_TINY = 1e-30


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Softmax of the logits over `temperature`, from the softmax (N, K) of the logits themselves; same dtype."""
    if temperature == 1.0:
        return probabilities
    scaled = np.log(np.maximum(probabilities.astype(np.float64), _TINY)) / temperature
    scaled = np.exp(scaled - scaled.max(1, keepdims=True))
    return (scaled / scaled.sum(1, keepdims=True)).astype(probabilities.dtype)


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The temperature with the least negative log-likelihood of `labels` (N,), between 0.05 and 20, to three digits.

    The likelihood is convex in 1/T, so halving brackets by the golden ratio finds its minimum.
    """
    log_p = np.log(np.maximum(probabilities.astype(np.float64), _TINY))

    def loss(inverse: float) -> float:
        scaled = log_p * inverse
        top = scaled.max(1)
        normaliser = top + np.log(np.exp(scaled - top[:, None]).sum(1))
        return float((normaliser - scaled[np.arange(len(labels)), labels]).mean())

    low, high, ratio = 1 / HIGHEST, 1 / LOWEST, (5**0.5 - 1) / 2
    while high - low > 1e-6:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return float(f"{2 / (low + high):.3g}")
