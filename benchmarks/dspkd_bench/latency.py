"""Interleaved latency measurement: every subject once per round, so that all of them see the same noise.

Standard library and numpy only. The clock is time.perf_counter_ns around one call with batch 1, input ready in memory.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["StopRule", "latency_summary", "measure_interleaved", "median_interval", "ratio_of_medians"]

Call = Callable[[], object]
EXACT_UP_TO = 1000


@dataclass(frozen=True, slots=True)
class StopRule:
    """Rounds are counted after `warmup_rounds`; at least `min_rounds`, then until `seconds` have passed or
    `max_rounds`.
    """

    warmup_rounds: int = 10
    min_rounds: int = 50
    max_rounds: int = 2000
    seconds: float = 20.0


def measure_interleaved(
    subjects: Mapping[str, Call],
    stop: StopRule,
    *,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, list[float]]:
    """Milliseconds of each counted call: {subject: [round 0, round 1, ...]}, all lists of the same length.

    The order is turned by one place every round, so that no subject always follows the same other one. The garbage
    collector is off while it runs.
    """
    names = list(subjects)
    times: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(stop.warmup_rounds):
            for name in names:
                subjects[name]()
        started = clock_ns()
        for number in range(stop.max_rounds):
            if number >= stop.min_rounds and (clock_ns() - started) / 1e9 >= stop.seconds:
                break
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                before = clock_ns()
                subjects[name]()
                times[name].append((clock_ns() - before) / 1e6)
            if progress and number % 10 == 0:
                progress(number, stop.max_rounds, "measuring latency")
    finally:
        if collecting:
            gc.enable()
    return times


def median_interval(sorted_values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the median: the r-th value from below and from above; no distribution is assumed.

    The number of values under the median is binomial (n, 1/2), so the interval misses it with probability 2 P(B <
    r), and r is the largest rank for which that is at most 5 % (normal approximation from n = 1000 on). Under six
    values no rank is good enough, and the interval is their whole range, which covers less than 95 %. Calls that
    follow each other are not independent; read the interval as a lower bound of the uncertainty.
    """
    n = len(sorted_values)
    if n < EXACT_UP_TO:
        rank, below, total = 0, 0, 2**n
        while 2 * (below + math.comb(n, rank)) <= 0.05 * total:
            below += math.comb(n, rank)
            rank += 1
    else:
        rank = math.floor(n / 2 - 0.98 * math.sqrt(n))
    rank = max(rank, 1)
    return sorted_values[rank - 1], sorted_values[n - rank]


def latency_summary(times_ms: Sequence[float]) -> dict[str, Any]:
    """Percentiles (linear interpolation), mean, extremes, count, and the interval of the median, in milliseconds."""
    values = np.sort(np.asarray(times_ms, dtype=float))
    p50, p90, p99 = (float(v) for v in np.percentile(values, [50, 90, 99]))
    return {
        "n": len(values),
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "mean_ms": float(values.mean()),
        "min_ms": float(values[0]),
        "max_ms": float(values[-1]),
        "p50_interval_ms": list(median_interval([float(v) for v in values])),
    }


def ratio_of_medians(slow_ms: Sequence[float], fast_ms: Sequence[float], *, repetitions: int = 1000) -> dict[str, Any]:
    """median(slow) / median(fast) with a 95 % interval, bootstrapped over rounds: a round's two times stay together."""
    slow, fast = np.asarray(slow_ms, dtype=float), np.asarray(fast_ms, dtype=float)
    rng = np.random.Generator(np.random.PCG64(0))
    picks = rng.integers(0, len(slow), size=(repetitions, len(slow)))
    ratios = np.median(slow[picks], axis=1) / np.median(fast[picks], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return {"ratio": float(np.median(slow) / np.median(fast)), "interval": [float(low), float(high)]}
