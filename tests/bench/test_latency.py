"""Statistics on series whose answer is known, and the order of an interleaved measurement, with a clock of our own."""

import gc
import math

import numpy as np
import pytest

from dspkd_bench.latency import StopRule, latency_summary, measure_interleaved, median_interval, ratio_of_medians


class Clock:
    """Time passes only when a subject runs."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.calls: list[str] = []

    def __call__(self) -> int:
        return self.now_ns

    def subject(self, name: str, cost_ms: float):
        def call() -> None:
            self.calls.append(name)
            self.now_ns += int(cost_ms * 1e6)

        return call


def measure(clock: Clock, stop: StopRule, **costs_ms: float) -> dict[str, list[float]]:
    return measure_interleaved(
        {name: clock.subject(name, cost) for name, cost in costs_ms.items()}, stop, clock_ns=clock
    )


def test_every_subject_once_per_round_and_the_order_turns():
    clock = Clock()
    times = measure(clock, StopRule(warmup_rounds=1, min_rounds=3, max_rounds=3, seconds=0.0), a=1.0, b=2.0, c=4.0)
    assert "".join(clock.calls) == "abc" + "abc" + "bca" + "cab"
    assert times == {"a": [1.0] * 3, "b": [2.0] * 3, "c": [4.0] * 3}


def test_it_stops_by_time_after_the_least_number_of_rounds():
    rule = StopRule(warmup_rounds=0, min_rounds=5, max_rounds=100, seconds=0.030)
    assert len(measure(Clock(), rule, a=2.0)["a"]) == 15
    assert len(measure(Clock(), rule, a=20.0)["a"]) == 5
    assert len(measure(Clock(), rule, a=0.0)["a"]) == 100


def test_the_garbage_collector_comes_back_after_a_failure():
    def broken() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        measure_interleaved({"broken": broken}, StopRule())
    assert gc.isenabled()


def test_summary_of_a_known_series():
    summary = latency_summary([float(v) for v in range(100, -1, -1)])
    assert summary["n"] == 101
    assert (summary["p50_ms"], summary["p90_ms"], summary["p99_ms"]) == (50.0, 90.0, 99.0)
    assert (summary["mean_ms"], summary["min_ms"], summary["max_ms"]) == (50.0, 0.0, 100.0)
    low, high = summary["p50_interval_ms"]
    # The binomial table's ranks for n = 101 are 41 and 61.
    assert (low, high) == (40.0, 60.0)


@pytest.mark.parametrize(
    ("n", "rank"),
    # Ranks of the distribution-free 95 % interval of the median, as tables of nonparametric statistics give them.
    [(6, 1), (8, 1), (9, 2), (10, 2), (15, 4), (20, 6), (25, 8), (50, 18), (100, 40)],
)
def test_ranks_of_the_median_interval(n, rank):
    assert median_interval([float(v) for v in range(1, n + 1)]) == (rank, n + 1 - rank)


def test_the_normal_approximation_joins_the_exact_ranks():
    for n in (998, 999, 1000, 1001, 5000):
        low, high = median_interval([float(v) for v in range(1, n + 1)])
        assert low + high == n + 1
        assert (n + 1) / 2 - low == pytest.approx(0.98 * math.sqrt(n), abs=1.5)


def test_a_few_values_give_their_whole_range():
    assert median_interval([3.0]) == (3.0, 3.0)
    assert median_interval([1.0, 2.0, 9.0]) == (1.0, 9.0)


def test_the_median_interval_covers_the_median_as_often_as_it_says():
    rng = np.random.default_rng(0)
    series = np.sort(rng.lognormal(0.0, 1.0, size=(2000, 50)), axis=1)
    covered = [low <= 1.0 <= high for low, high in (median_interval(row.tolist()) for row in series)]
    assert 0.94 <= np.mean(covered) <= 0.985


def test_ratio_of_constant_series_has_no_width():
    assert ratio_of_medians([20.0] * 9, [5.0] * 9) == {"ratio": 4.0, "interval": [4.0, 4.0]}


def test_noise_that_both_subjects_share_cancels_in_the_ratio():
    rng = np.random.default_rng(1)
    shared = rng.lognormal(0.0, 0.5, 300)
    paired = ratio_of_medians(10 * shared, 2 * shared)
    separate = ratio_of_medians(10 * shared, 2 * rng.permutation(shared))
    assert paired["interval"] == pytest.approx([5.0, 5.0])
    assert separate["interval"][1] - separate["interval"][0] > 0.2
    assert separate["interval"][0] <= 5.0 <= separate["interval"][1]
