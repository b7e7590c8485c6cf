"""Statistics against distributions whose quantiles are known, and series whose fault is known."""

import math
import re

import numpy as np
import pytest

from dspkd.errors import InconclusiveError
from dspkd_bench.agent import Rule, early_stopping_rank, measure_rounds, p90_is_known, warm_up
from dspkd_bench.latency import latency_summary, ratio_of_medians
from dspkd_bench.statistics import (
    Verdict,
    autocorrelation_time,
    compare_with_baseline,
    flags,
    judge,
    overall,
    percentile_interval,
    student_quantile,
)

RNG = np.random.default_rng


def autoregressive(rng, n, phi):
    noise = rng.normal(size=n)
    series = np.empty(n)
    series[0] = noise[0]
    for i in range(1, n):
        series[i] = phi * series[i - 1] + math.sqrt(1 - phi**2) * noise[i]
    return series


@pytest.mark.parametrize(("q", "n", "truth"), [(0.5, 50, 0.0), (0.9, 200, 1.2815515655), (0.99, 1500, 2.3263478740)])
def test_the_interval_covers_the_quantile_as_often_as_it_says(q, n, truth):
    rng = RNG(0)
    intervals = [percentile_interval(rng.normal(size=n), q) for _ in range(1500)]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.935 <= covered <= 0.99


@pytest.mark.parametrize("phi", [0.5, 0.9])
def test_calls_that_depend_on_each_other_make_it_wider(phi):
    rng = RNG(1)
    series = [autoregressive(rng, 600, phi) for _ in range(400)]
    covered = np.mean([low <= 0.0 <= high for low, high in (percentile_interval(s, 0.5) for s in series)])
    assert covered >= 0.90
    naive = np.mean(
        [low <= 0.0 <= high for low, high in (percentile_interval(rng.permutation(s), 0.5) for s in series)]
    )
    assert naive < covered - 0.05


@pytest.mark.parametrize(
    ("n", "rank"),
    # Ranks of the distribution-free 95 % interval of the median, as tables of nonparametric statistics give them.
    [(6, 1), (8, 1), (9, 2), (10, 2), (15, 4), (20, 6), (25, 8), (50, 18), (100, 40)],
)
def test_ranks_of_the_median_interval(n, rank):
    values = RNG(5).permutation(np.arange(1.0, n + 1))
    assert autocorrelation_time(values <= np.median(values)) == 1.0
    assert percentile_interval(values, 0.5) == (rank, n + 1 - rank)


@pytest.mark.parametrize(("q", "n"), [(0.5, 5), (0.9, 20), (0.99, 300), (0.5, 1)])
def test_too_few_calls_give_no_interval(q, n):
    assert percentile_interval(RNG(0).normal(size=n), q) is None


def test_autocorrelation_time_of_known_processes():
    rng = RNG(2)
    independent = np.mean([autocorrelation_time(rng.normal(size=500)) for _ in range(100)])
    assert independent < 1.1
    dependent = np.mean([autocorrelation_time(autoregressive(rng, 4000, 0.8)) for _ in range(20)])
    assert dependent == pytest.approx((1 + 0.8) / (1 - 0.8), rel=0.25)
    assert autocorrelation_time([3.0] * 50) == 1.0


def test_early_stopping_is_that_of_mlperf():
    """LoadGen's single stream: p90, confidence 99 %: one call may be over from 64 calls on."""
    assert early_stopping_rank(43) is None
    assert early_stopping_rank(44) == 44
    assert early_stopping_rank(63) == 63
    assert early_stopping_rank(64) == 63


def test_the_early_stopping_estimate_is_above_p90_with_its_confidence():
    rng = RNG(3)
    n = 200
    rank = early_stopping_rank(n)
    above = np.mean(np.sort(rng.exponential(size=(4000, n)), axis=1)[:, rank - 1] >= math.log(10))
    assert 0.985 <= above <= 0.999


def test_a_summary_says_what_too_few_calls_cannot():
    few, many = latency_summary(list(RNG(0).normal(5, 1, 50))), latency_summary(list(RNG(0).normal(5, 1, 900)))
    assert few["p90_early_stopping_ms"] is None and few["p99_interval_ms"] is None
    assert many["p90_ms"] < many["p90_early_stopping_ms"] < many["max_ms"]
    assert many["p99_interval_ms"][0] < many["p99_ms"] < many["p99_interval_ms"][1]


class Clock:
    def __init__(self, costs_ms):
        self.now, self.costs, self.calls = 0, iter(costs_ms), 0

    def __call__(self):
        return self.now

    def call(self):
        self.calls += 1
        self.now += int(next(self.costs) * 1e6)


def test_it_stops_as_soon_as_p90_is_known():
    rng = RNG(4)
    steady = Clock(rng.normal(5.0, 0.01, 3000))
    rule = Rule(min_rounds=50, max_rounds=2000, seconds=1e9, precision=0.02)
    assert len(list(measure_rounds({"a": steady.call}, rule, steady))) < 150
    restless = Clock(rng.lognormal(1.0, 1.0, 3000))
    assert len(list(measure_rounds({"a": restless.call}, rule, restless))) == 2000
    assert not p90_is_known([1.0] * 40, 0.5)


def test_warm_up_goes_on_while_times_fall():
    falling = Clock([100.0 * 0.8**i for i in range(20)] + [1.0] * 100)
    rounds = warm_up({"a": falling.call}, Rule(warmup_rounds=10), falling)
    assert 25 <= rounds <= 35
    flat = Clock([1.0] * 200)
    assert warm_up({"a": flat.call}, Rule(warmup_rounds=10), flat) == 10
    endless = Clock([0.9**i * 1e6 for i in range(200)])
    assert warm_up({"a": endless.call}, Rule(warmup_rounds=10), endless) == 100


SOUND = {
    "normal": lambda rng, n: rng.normal(10, 1, n),
    "lognormal": lambda rng, n: rng.lognormal(1, 0.3, n),
    "uniform": lambda rng, n: rng.uniform(5, 10, n),
    "exponential": lambda rng, n: 4 + rng.exponential(1, n),
    "heavy tail": lambda rng, n: 4 + 0.1 * np.abs(rng.standard_t(2, n)),
    "constant": lambda rng, n: np.full(n, 3.0),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_series_is_hardly_ever_flagged(name):
    rng = RNG(6)
    wrong = sum(bool(flags(SOUND[name](rng, 300))) for _ in range(200))
    assert wrong <= 4


@pytest.mark.parametrize(("share", "apart"), [(0.5, 1.3), (0.2, 1.5), (0.8, 2.0)])
def test_two_clusters_are_bimodal(share, apart):
    rng = RNG(7)
    found = sum(
        "bimodal" in flags(np.where(rng.random(300) < share, rng.normal(apart, 0.02, 300), rng.normal(1.0, 0.02, 300)))
        for _ in range(100)
    )
    assert found >= 98


@pytest.mark.parametrize("change", [0.15, -0.15])
def test_a_series_that_gets_slower_or_faster_drifts(change):
    rng = RNG(8)
    found = sum(
        "drifting" in flags((1 + change * np.linspace(0, 1, 300)) * rng.normal(5, 0.1, 300)) for _ in range(100)
    )
    assert found >= 98


def test_blocks_widen_the_ratio_of_dependent_series():
    rng = RNG(9)
    covered = []
    for _ in range(150):
        slow, fast = (np.exp(0.2 * autoregressive(rng, 400, 0.9)) for _ in range(2))
        low, high = ratio_of_medians(10 * slow, fast, repetitions=200)["interval"]
        covered.append(low <= 10.0 <= high)
    assert np.mean(covered) >= 0.85


STATE = {"phase": "rounds", "clocks_khz": [2_000_000, 2_000_000], "temperatures_c": {}}
LATENCY = {"n": 200, "p90_early_stopping_ms": 5.0}


def test_verdicts():
    assert judge(LATENCY, [], [STATE] * 4, 2) == Verdict("valid")
    few = judge({"n": 20, "p90_early_stopping_ms": None}, [], [STATE], 2)
    assert few.verdict == "semi-valid" and "20 calls" in few.reasons[0]
    busy = judge(LATENCY, ["bimodal"], [STATE], 2, load=1.9)
    assert busy.verdict == "semi-valid" and len(busy.reasons) == 2
    idle = {"clocks_khz": [1_200_000]}
    calm = [{**STATE, "phase": "before", **idle}, STATE, STATE, {**STATE, "phase": "after", **idle}]
    assert judge(LATENCY, [], calm, 2) == Verdict("valid")
    throttled = judge(LATENCY, [], [STATE, STATE, {**STATE, **idle}, STATE], 2)
    assert throttled.verdict == "invalid" and "2.00 to 1.20 GHz" in throttled.reasons[0]
    both = overall([Verdict("valid"), few], ["a", "b"])
    assert both.verdict == "semi-valid" and both.reasons[0].startswith("b: 20 calls")


def results(low, p50, high, **settings):
    latency = {"p50_ms": p50, "p50_interval_ms": [low, high]}
    subject = {"name": "s", "role": "student", "target": "onnx", "precision": "fp32", "complexity": {"size": 96}}
    return {
        "environment": {"cpu": "c", "machine": "m", "cores": 2},
        "settings": {"batch": 1, "threads": 1, **settings},
        "subjects": [{**subject, "latency": latency}],
    }


@pytest.mark.parametrize(
    ("now", "verdict"),
    [((4.9, 5.0, 5.1), "pass"), ((6.0, 6.1, 6.2), "fail"), ((5.1, 5.25, 5.4), "inconclusive"), ((3, 3, 3), "pass")],
)
def test_a_regression_is_judged_by_the_interval(now, verdict):
    [row] = compare_with_baseline(results(4.95, 5.0, 5.05), results(*now), max_regression=0.05)
    assert row["verdict"] == verdict
    assert row["interval"][0] <= row["ratio"] <= row["interval"][1]


def test_students_t():
    # From a table.
    for degrees, quantile in ((4, 2.776), (9, 2.262), (19, 2.093), (1000, 1.962)):
        assert student_quantile(degrees) == pytest.approx(quantile, rel=0.004)
    with pytest.raises(ValueError, match="at least 4"):
        student_quantile(3)


def test_unequal_terms_are_inconclusive():
    with pytest.raises(InconclusiveError, match="another threads: 1, now 2"):
        compare_with_baseline(results(1, 1, 1), results(1, 1, 1, threads=2), max_regression=0.05)
    fewer = results(1, 1, 1)
    fewer["environment"]["cores"] = 1
    with pytest.raises(InconclusiveError, match="another cores: 2, now 1"):
        compare_with_baseline(results(1, 1, 1), fewer, max_regression=0.05)
    other = results(1, 1, 1)
    other["subjects"][0]["name"] = "t"
    with pytest.raises(InconclusiveError, match="no subject in common"):
        compare_with_baseline(results(1, 1, 1), other, max_regression=0.05)


def measured_on(url, cpu=None, governor=None, **device):
    found = results(4.9, 5.0, 5.1)
    found["environment"] |= {"cpu": cpu, "governor": governor}
    return found | {"device": {"url": url, "name": None, **device}}


PIXEL = measured_on("adb:1", name="Pixel 8", soc="Tensor G3", fixed_performance="on")
ORIN = measured_on("ssh://a", "ARMv8", "schedutil", facts={"board": "Orin Nano", "power mode": "15W (0)"})


@pytest.mark.parametrize(
    ("before", "now", "what"),
    [
        (PIXEL, measured_on("adb:2", name="Pixel 9", soc="Tensor G3"), "device: 'Pixel 8', now 'Pixel 9'"),
        (PIXEL, measured_on("adb:2", name="Pixel 8", soc="Tensor G4"), "system on a chip"),
        (PIXEL, measured_on("adb:1", name="Pixel 8", fixed_performance="not allowed"), "fixed-performance mode"),
        (ORIN, measured_on("ssh://a", "ARMv8", facts={"board": "Orin NX"}), "board: 'Orin Nano', now 'Orin NX'"),
        (ORIN, measured_on("ssh://a", "ARMv8", facts={"power mode": "MAXN (2)"}), "power mode"),
        (ORIN, measured_on("ssh://a", "ARMv8", "performance"), "governor: 'schedutil', now 'performance'"),
        (measured_on("adb:1"), measured_on("adb:2"), "address"),
    ],
)
def test_two_devices_are_not_one(before, now, what):
    with pytest.raises(InconclusiveError, match=f"another {re.escape(what)}"):
        compare_with_baseline(before, now, max_regression=0.05)


def test_what_a_device_does_not_say_is_no_difference():
    for one in (PIXEL, ORIN, measured_on("adb:1")):
        assert compare_with_baseline(one, one, max_regression=0.05)[0]["verdict"] == "pass"
    nameless, named = measured_on("ssh://a", facts={"board": "Pi 5"}), measured_on("ssh://a", "Pi 5")
    assert compare_with_baseline(nameless, named, max_regression=0.05)[0]["verdict"] == "pass"
    silent = measured_on("ssh://b", "ARMv8")
    assert compare_with_baseline(ORIN, silent, max_regression=0.05)[0]["verdict"] == "pass"


INVALID = {"validity": {"verdict": "invalid", "reasons": ["throttled: the clock fell"]}}


@pytest.mark.parametrize(
    ("before", "now", "what"),
    [
        (INVALID, {}, "the baseline is invalid: throttled"),
        ({}, INVALID, "this run is invalid: throttled"),
        ({"interrupted": "cable pulled"}, {}, "the baseline is invalid: broke off: cable pulled"),
    ],
)
def test_what_is_no_valid_measurement_passes_no_gate(before, now, what):
    sound = results(4.9, 5.0, 5.1)
    with pytest.raises(InconclusiveError, match=what):
        compare_with_baseline(sound | before, sound | now, max_regression=0.05)


def test_a_subject_that_is_no_longer_there_is_inconclusive():
    before = results(4.95, 5.0, 5.05)
    gone = [before["subjects"][0] | {"name": name} for name in ("t", "u")]
    before["subjects"] += gone
    now = results(4.9, 5.0, 5.1) | {"failed": [{"name": "u", "message": "no memory"}]}
    rows = {row["subject"]: row for row in compare_with_baseline(before, now, max_regression=0.05)}
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "s": "pass",
        "t": "inconclusive",
        "u": "inconclusive",
    }
    assert "not measured" in rows["t"]["reason"] and "no memory" in rows["u"]["reason"]
    assert rows["t"]["ratio"] is None
