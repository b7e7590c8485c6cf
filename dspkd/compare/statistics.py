"""Paired differences between two methods over seeds, with intervals over lesions, and over lesions and seeds.

Every metric comes as an array (S, 1 + R): one row for each seed, the first column on the test part as it is, the others
on R bootstrap draws of its lesions. The draws are the same for all seeds and methods, so that differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Difference", "Gap", "gap_closed", "holm", "paired_difference", "t_quantile", "t_two_sided"]

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Difference:
    """Ours minus theirs."""

    value: float
    """Mean over the seeds."""
    per_seed: tuple[float, ...]
    lesions: tuple[float, float]
    lesions_and_seeds: tuple[float, float] | None
    """None with one seed, from which nothing follows about others."""
    p: float | None
    """Two-sided, of no difference, from the same estimate as `lesions_and_seeds`."""


def paired_difference(ours: np.ndarray, theirs: np.ndarray, lesions: int) -> Difference:
    """The difference d = mean_s [M(ours, s) - M(theirs, s)] of a metric M, from arrays (S, 1 + R) with equal seeds in
    equal rows; `lesions` is the number of lesions that were drawn from.

    Two 95 % intervals, which answer two questions:

    - `lesions`: percentiles of d over the bootstrap draws. It covers d for other lesions of the same kind *with these
      very networks*. Trained again with other seeds, they would differ by more than it says.
    - `lesions_and_seeds`: d ± t · sqrt(V_l + V_s), with V_l the variance of d over the draws, V_s = var_s(d_s) / S
      the squared standard error of the mean over the seeds, and t the quantile of Student's distribution with the
      degrees of freedom of Welch and Satterthwaite. It covers d for other lesions and other seeds. A network's own
      errors on these lesions are part of both variances, so it is rather too wide than too narrow. With three seeds it
      is wide, and it should be.

    Neither covers another split, another teacher (each was fitted once), another schedule, or images from elsewhere.
    """
    differences = ours - theirs
    per_seed, mean = differences[:, 0], differences.mean(0)
    low, high = np.percentile(mean[1:], [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2])
    both, p = None, None
    if len(per_seed) > 1:
        over_lesions, over_seeds = float(mean[1:].var(ddof=1)), float(per_seed.var(ddof=1)) / len(per_seed)
        error = math.sqrt(over_lesions + over_seeds)
        freedom = _freedom(over_lesions, lesions - 1, over_seeds, len(per_seed) - 1)
        reach = t_quantile((1 + LEVEL) / 2, freedom) * error
        both = (float(mean[0] - reach), float(mean[0] + reach))
        p = t_two_sided(float(mean[0]) / error, freedom) if error > 0 else (1.0 if mean[0] == 0 else 0.0)
    return Difference(float(mean[0]), tuple(float(v) for v in per_seed), (float(low), float(high)), both, p)


def _freedom(a: float, a_freedom: int, b: float, b_freedom: int) -> float:
    """Welch and Satterthwaite: the degrees of freedom of a sum of two independent estimates of variance."""
    if a + b == 0:
        return float(b_freedom)
    return (a + b) ** 2 / (a**2 / a_freedom + b**2 / b_freedom)


@dataclass(frozen=True, slots=True)
class Gap:
    """How much of the distance between the undistilled student and the teacher a method closes: 0 none, 1 all."""

    value: float | None
    """None where the teacher is not ahead of the undistilled student: there is no gap."""
    interval: tuple[float, float] | None
    """None where the teacher is not surely ahead: then any share is compatible with the data."""


def gap_closed(ours: np.ndarray, alone: np.ndarray, teacher: np.ndarray, lesions: int) -> Gap:
    """(ours - alone) / (teacher - alone), each the mean over the seeds; arrays (S, 1 + R), `teacher` (1 + R,).

    The 95 % interval is Fieller's: all shares r for which n - r d, with n the numerator and d the denominator, does
    not differ from 0 by more than t standard errors. Its variances and degrees of freedom are those of
    `lesions_and_seeds` in `paired_difference` (with one seed, over the lesions alone). A ratio of two uncertain numbers
    has no useful standard error when the lower one may be 0; Fieller's set is then unbounded, and None is given.
    """
    pairs = np.stack([ours - alone, teacher[None] - alone])
    n, d = (float(v) for v in pairs.mean(1)[:, 0])
    if d <= 0:
        return Gap(None, None)
    covariance = np.cov(pairs.mean(1)[:, 1:])
    freedom = float(lesions - 1)
    if pairs.shape[1] > 1:
        seeds = pairs.shape[1]
        over_seeds = np.cov(pairs[:, :, 0]) / seeds
        direction = np.array([1.0, -n / d])
        freedom = _freedom(
            float(direction @ covariance @ direction), lesions - 1, float(direction @ over_seeds @ direction), seeds - 1
        )
        covariance = covariance + over_seeds
    squared = t_quantile((1 + LEVEL) / 2, freedom) ** 2
    # (n - r d)² <= t² (V_nn - 2 r V_nd + r² V_dd) is a r² - 2 b r + c <= 0.
    a = d * d - squared * covariance[1, 1]
    b = n * d - squared * covariance[0, 1]
    c = n * n - squared * covariance[0, 0]
    if a <= 0:
        return Gap(n / d, None)
    root = math.sqrt(max(0.0, b * b - a * c))
    return Gap(n / d, (float((b - root) / a), float((b + root) / a)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): below 0.05, and the chance of one false claim among all is below 5 %."""
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


# Student's distribution, here so that no statistics package is needed for two functions --------------


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)


def t_two_sided(t: float, freedom: float) -> float:
    """P(|T| > |t|). With x = freedom / (freedom + t²) = cos² θ the density is proportional to cos^(freedom - 1) θ."""
    angle = math.atan(abs(t) / math.sqrt(freedom))
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(math.pi)
    # The density is narrow in θ for many degrees of freedom; what lies beyond twelve widths is below 1e-30.
    end = min(math.pi / 2, angle + 12 / math.sqrt(freedom))
    theta = (end + angle) / 2 + (end - angle) / 2 * _NODES
    density = np.exp(log_scale + (freedom - 1) * np.log(np.cos(theta)))
    return min(1.0, (end - angle) * float(_WEIGHTS @ density))


def t_quantile(q: float, freedom: float) -> float:
    """The value below which T lies with probability q > 1/2."""
    low, high = 0.0, 1.0
    while t_two_sided(high, freedom) > 2 * (1 - q):
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_two_sided(middle, freedom) > 2 * (1 - q) else (low, middle)
    return high
