"""Statistics on series whose answer is known, and the order of an interleaved measurement, with a clock of our own."""

import gc

import numpy as np
import pytest

from dspkd_bench.latency import (
    Series,
    StopRule,
    latency_summary,
    measure_interleaved,
    ratio_of_medians,
    sustained_summary,
    thinned,
)
from dspkd_bench.statistics import flags


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
    calls = {name: clock.subject(name, cost) for name, cost in costs_ms.items()}
    return {name: series.ms for name, series in measure_interleaved(calls, stop, clock_ns=clock).items()}


def test_every_subject_once_per_round():
    clock = Clock()
    times = measure(clock, StopRule(warmup_rounds=1, min_rounds=3, max_rounds=3, seconds=0.0), a=1.0, b=2.0, c=4.0)
    rounds = ["".join(clock.calls[i : i + 3]) for i in range(0, 12, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert times == {"a": [1.0] * 3, "b": [2.0] * 3, "c": [4.0] * 3}


def test_no_subject_keeps_its_neighbour_and_the_order_is_the_same_again():
    """What ran before has filled the caches: with one neighbour for ever its weight would be in the result."""
    rule = StopRule(warmup_rounds=0, min_rounds=300, max_rounds=300, seconds=0.0)
    first, second = Clock(), Clock()
    for clock in (first, second):
        measure(clock, rule, a=1.0, b=2.0, c=4.0, d=8.0)
    assert first.calls == second.calls
    before_a = [first.calls[i - 1] for i in range(1, len(first.calls)) if first.calls[i] == "a"]
    assert all(60 <= before_a.count(name) <= 140 for name in "bcd")


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
    summary = latency_summary(list(np.random.default_rng(5).permutation(101).astype(float)))
    assert summary["n"] == 101
    assert (summary["p50_ms"], summary["p90_ms"], summary["p99_ms"]) == (50.0, 90.0, 99.0)
    assert (summary["mean_ms"], summary["min_ms"], summary["max_ms"]) == (50.0, 0.0, 100.0)
    low, high = summary["p50_interval_ms"]
    # The binomial table's ranks for n = 101 are 41 and 61.
    assert (low, high) == (40.0, 60.0)


def test_a_few_values_give_their_whole_range():
    assert latency_summary([3.0])["p50_interval_ms"] == [3.0, 3.0]
    assert latency_summary([2.0, 9.0, 1.0])["p50_interval_ms"] == [1.0, 9.0]


def test_a_picture_has_few_points():
    series = Series([float(i) for i in range(1000)], [i / 10 for i in range(1000)])
    points = thinned(series, most=400)
    assert len(points["ms"]) == len(points["at_s"]) == 334
    assert points["ms"][:2] == [1.0, 4.0]
    assert thinned(Series([1.0], [0.0])) == {"at_s": [0.0], "ms": [1.0]}


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


# Sustained load


def test_burst_and_sustained_of_a_device_that_heats_up():
    """10 ms for the first 20 of 60 s, then 15 ms, both with a little noise."""
    rng, at_s, ms, now = np.random.default_rng(4), [], [], 100.0
    while now < 160.0:
        at_s.append(now)
        ms.append((10.0 if now < 120.0 else 15.0) * (1 + 0.01 * rng.standard_normal()))
        now += ms[-1] / 1e3
    summary = sustained_summary(Series(ms, at_s))
    assert summary["seconds"] == pytest.approx(60.0, abs=0.02)
    assert (summary["burst_ms"], summary["sustained_ms"]) == pytest.approx((10.0, 15.0), rel=0.005)
    low, high = summary["ratio"]["interval"]
    assert low <= 1.5 <= high and high - low < 0.02
    assert summary["series"]["at_s"][0] == pytest.approx(0.0, abs=0.1)
    assert "drifting" in flags(ms)


def test_a_steady_device_has_a_ratio_of_one():
    rng = np.random.default_rng(3)
    ms = (1.0 * rng.lognormal(0.0, 0.1, 50_000)).tolist()
    at_s = (np.cumsum(ms) / 1e3).tolist()
    summary = sustained_summary(Series(ms, at_s))
    low, high = summary["ratio"]["interval"]
    assert low <= 1.0 <= high and high - low < 0.02
    assert flags(ms) == []


def test_a_phase_of_a_few_calls():
    summary = sustained_summary(Series([4.0, 2.0, 2.0], [0.0, 1.0, 2.0]))
    assert summary["burst_ms"] == summary["sustained_ms"] == 2.0


def test_no_number_of_rounds_ends_a_measurement_that_was_asked_to_last():
    rule = StopRule(warmup_rounds=0, min_rounds=5, seconds=3.0)
    assert len(measure(Clock(), rule, a=1.0)["a"]) == 3000
    more = StopRule(warmup_rounds=0, min_rounds=2500, max_rounds=2000, seconds=0.0)
    assert more.max_rounds == 2500 and len(measure(Clock(), more, a=1.0)["a"]) == 2500


def test_a_bootstrap_in_parts_is_the_same_bootstrap(monkeypatch):
    rng = np.random.default_rng(3)
    slow, fast = (rng.normal(mean, 0.1, 150) for mean in (10, 2))
    whole = ratio_of_medians(slow, fast)
    monkeypatch.setattr("dspkd_bench.latency.DRAWN_AT_ONCE", 10_000)
    assert ratio_of_medians(slow, fast) == whole
