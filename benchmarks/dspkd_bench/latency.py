"""Interleaved latency measurement: every subject once per round, so that all of them see the same noise.

The clock is time.perf_counter_ns around one call with batch 1, input ready in memory. The loop is `agent.py`'s, so that
this machine and a device far away measure alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dspkd_bench.agent import Rule, early_stopping_rank, measure_rounds, warm_up
from dspkd_bench.statistics import autocorrelation_time, percentile_interval

__all__ = [
    "Series",
    "StopRule",
    "latency_summary",
    "measure_interleaved",
    "ratio_of_medians",
    "sustained_summary",
    "thinned",
]

Call = Callable[[], object]
# LoadGen gives no estimate from fewer queries.
MLPERF_LEAST = 64
# A sustained phase of at least ten times as long begins with it.
BURST_SECONDS = 3.0
LEAST_CALLS = 5
MOST_POINTS = 1000
# Rounds that no measurement reaches.
NO_LIMIT = 10**9
# Numbers that a bootstrap draws at once, and in all.
DRAWN_AT_ONCE, DRAWN = 2 * 10**6, 10**8


@dataclass(frozen=True, slots=True)
class StopRule:
    """Rounds are counted after the warm-up, which takes `warmup_rounds` or longer until the times no longer fall; at
    least `min_rounds`, then until `seconds` have passed, `max_rounds` are done, or the p90 of every subject is known
    to the fraction `precision` (MLPerf's early stopping; None: never stop for that). A `max_rounds` below `min_rounds`
    is raised to that.
    """

    warmup_rounds: int = 10
    min_rounds: int = 50
    max_rounds: int = NO_LIMIT
    seconds: float = 20.0
    precision: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_rounds", max(self.min_rounds, self.max_rounds))


@dataclass(frozen=True, slots=True)
class Series:
    """The calls of one subject in order: milliseconds of each, and seconds since the measured part began."""

    ms: list[float] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)


def measure_interleaved(
    subjects: Mapping[str, Call],
    stop: StopRule,
    *,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, Series]:
    """The counted calls of each subject, all series of the same length. The garbage collector is off meanwhile.

    The order is drawn anew every round, so that no subject always follows the same other one.
    """
    rule = Rule(**asdict(stop))
    warm_up(subjects, rule, clock_ns)
    series = {name: Series() for name in subjects}
    for done in measure_rounds(subjects, rule, clock_ns):
        for name, at_s, took_ms in done:
            series[name].at_s.append(at_s)
            series[name].ms.append(took_ms)
    return series


def latency_summary(times_ms: Sequence[float]) -> dict[str, Any]:
    """Percentiles (linear interpolation), mean, extremes, count, and intervals in milliseconds, of calls in order.

    `p50_interval_ms` is the whole range where there are too few calls for an interval; those of p90 and p99 and
    `p90_early_stopping_ms` (which p90 is under with 99 % confidence, as MLPerf reports a single stream) are then None.
    """
    values = np.sort(np.asarray(times_ms, dtype=float))
    p50, p90, p99 = (float(v) for v in np.percentile(values, [50, 90, 99]))
    rank = early_stopping_rank(len(values))
    intervals = {q: percentile_interval(times_ms, q) for q in (0.5, 0.9, 0.99)}
    return {
        "n": len(values),
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "mean_ms": float(values.mean()),
        "min_ms": float(values[0]),
        "max_ms": float(values[-1]),
        "p50_interval_ms": list(intervals[0.5] or (float(values[0]), float(values[-1]))),
        "p90_interval_ms": list(intervals[0.9]) if intervals[0.9] else None,
        "p99_interval_ms": list(intervals[0.99]) if intervals[0.99] else None,
        "p90_early_stopping_ms": float(values[rank - 1]) if rank and len(values) >= MLPERF_LEAST else None,
    }


def ratio_of_medians(slow_ms: Sequence[float], fast_ms: Sequence[float], *, repetitions: int = 1000) -> dict[str, Any]:
    """median(slow) / median(fast) with a 95 % interval, bootstrapped over rounds: a round's two times stay together.

    Rounds that depend on each other are drawn in blocks as long as the dependence lasts.
    """
    slow, fast = np.asarray(slow_ms, dtype=float), np.asarray(fast_ms, dtype=float)
    block = math.ceil(max(autocorrelation_time(v <= np.median(v)) for v in (slow, fast)))
    rng = np.random.Generator(np.random.PCG64(0))
    # Of very many calls the median is known so well that fewer repetitions say the same of its interval.
    repetitions = min(repetitions, max(200, DRAWN // max(len(slow), len(fast))))
    at_once = max(1, DRAWN_AT_ONCE // max(len(slow), len(fast)))
    parts = []
    for start in range(0, repetitions, at_once):
        number = min(at_once, repetitions - start)
        picks = _blocks(rng, len(slow), block, number)
        # Of two lengths they come from two runs, and no call of the one belongs to a call of the other.
        others = picks if len(slow) == len(fast) else _blocks(rng, len(fast), block, number)
        parts.append(np.median(slow[picks], axis=1) / np.median(fast[others], axis=1))
    low, high = np.percentile(np.concatenate(parts), [2.5, 97.5])
    return {"ratio": float(np.median(slow) / np.median(fast)), "interval": [float(low), float(high)]}


def _blocks(rng: np.random.Generator, n: int, block: int, repetitions: int) -> np.ndarray:
    """(repetitions, n) indices in runs of `block` neighbours, the end joined to the beginning."""
    starts = rng.integers(0, n, size=(repetitions, math.ceil(n / block)))
    return ((starts[..., None] + np.arange(block)) % n).reshape(repetitions, -1)[:, :n]


def thinned(series: Series, most: int = 400) -> dict[str, list[float]]:
    """The series for a picture: every call, or the medians of equally many neighbours, at most `most` points."""
    return {
        "at_s": [round(value, 4) for value in _medians(series.at_s, most)],
        "ms": [round(value, 5) for value in _medians(series.ms, most)],
    }


def _medians(values: Sequence[float], most: int) -> list[float]:
    """The values, or the medians of equally many neighbours, at most `most`."""
    width = math.ceil(len(values) / most)
    return [float(np.median(values[i : i + width])) for i in range(0, len(values), width)]


def sustained_summary(series: Series) -> dict[str, Any]:
    """Of a subject that ran alone without a break, after a pause: `burst_ms` is the median of its first 3 seconds (a
    tenth of it, if it was shorter than 30 s), `sustained_ms` that of its last quarter, `ratio` sustained / burst.

    `seconds` is how long it ran; the times of `series` are counted from its first call.
    """
    at_s = np.asarray(series.at_s) - series.at_s[0]
    seconds = float(at_s[-1]) + series.ms[-1] / 1e3
    first = max(LEAST_CALLS, int(np.searchsorted(at_s, min(BURST_SECONDS, seconds / 10))))
    last = min(len(at_s) - LEAST_CALLS, int(np.searchsorted(at_s, 0.75 * seconds)))
    burst, sustained = series.ms[:first], series.ms[max(0, last) :]
    burst_ms, sustained_ms = float(np.median(burst)), float(np.median(sustained))
    # A fast network is called a hundred thousand times: medians of neighbours keep the bootstrap small.
    interval = ratio_of_medians(_medians(sustained, MOST_POINTS), _medians(burst, MOST_POINTS))["interval"]
    return {
        "seconds": seconds,
        "burst_ms": burst_ms,
        "sustained_ms": sustained_ms,
        "ratio": {"ratio": sustained_ms / burst_ms, "interval": interval},
        "series": thinned(Series(series.ms, at_s.tolist())),
    }
