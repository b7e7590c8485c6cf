"""What a series of latencies tells: intervals of percentiles, whether the series is sound, and whether it got slower.

Intervals come from order statistics, so no distribution is assumed: the number of calls under the q-quantile is
binomial (n, q). Calls in a row depend on each other; the binomial then counts fewer calls, n over the time that the
dependence lasts (the integrated autocorrelation time of "this call was under the quantile").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dspkd.errors import InconclusiveError

__all__ = [
    "Verdict",
    "autocorrelation_time",
    "compare_with_baseline",
    "flags",
    "judge",
    "overall",
    "percentile_interval",
    "student_quantile",
    "throttling",
]

# Two clusters of calls: this many standard deviations apart, the smaller with at least this share. Splitting one
# bell-shaped cluster in two gives 2.7, a uniform one 3.5.
APART, SHARE = 4.5, 0.05
DRIFT_CHANGE, DRIFT_Z = 0.03, 4.0
CLOCK_DROP = 0.10
# Fewer calls say nothing about their dependence.
FEW = 16
BUSY_LOAD = 0.5


def autocorrelation_time(values: Sequence[float] | np.ndarray) -> float:
    """How many calls in a row count as one: 1 for independent ones. Sums autocorrelations in pairs until a pair is
    no more than chance would give (Geyer's initial sequence, Statistical Science 7, 1992, which stops at zero).
    """
    series = np.asarray(values, dtype=float)
    series = series - series.mean()
    n = len(series)
    power = float(series @ series)
    if n < FEW or power == 0.0:
        return 1.0
    spectrum = np.abs(np.fft.rfft(series, 2 * n)) ** 2
    correlations = np.fft.irfft(spectrum)[:n] / power
    total, noise = 1.0, 2.0 * math.sqrt(2.0 / n)
    for lag in range(1, n - 1, 2):
        pair = float(correlations[lag] + correlations[lag + 1])
        if pair <= noise:
            break
        total += 2.0 * pair
    return min(max(1.0, total), n / 2)


def _cumulative_binomial(n: int, q: float) -> np.ndarray:
    """P(B <= k) for k = 0 .. n."""
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    k = np.arange(n + 1)
    logs = factorials[n] - factorials[k] - factorials[n - k] + k * math.log(q) + (n - k) * math.log1p(-q)
    return np.cumsum(np.exp(logs))


def percentile_interval(values: Sequence[float], q: float, *, confidence: float = 0.95) -> tuple[float, float] | None:
    """Interval of the q-quantile (0 < q < 1) of `values`, in the order in which they were measured.

    None where there are too few of them for a bound on both sides.
    """
    series = np.asarray(values, dtype=float)
    if len(series) < 2:
        return None
    tau = autocorrelation_time(series <= np.quantile(series, q))
    n = max(2, math.floor(len(series) / tau))
    below, miss = _cumulative_binomial(n, q), (1.0 - confidence) / 2
    low = int(np.searchsorted(below, miss, side="right"))
    high = int(np.searchsorted(below, 1.0 - miss)) + 1
    if low < 1 or high > n:
        return None
    ordered, scale = np.sort(series), len(series) / n
    lower = max(1, math.floor((low - 1) * scale) + 1 if tau > 1 else low)
    upper = min(len(series), math.ceil(high * scale) if tau > 1 else high)
    return float(ordered[lower - 1]), float(ordered[upper - 1])


def student_quantile(degrees: int) -> float:
    """Half the width of a 95 % interval of a mean in standard errors, by Student's t with `degrees` from 4 on.

    Fisher and Cornish's expansion around the normal quantile; to within 0.3 % there.
    """
    if degrees < 4:
        raise ValueError(f"degrees of freedom: expected at least 4, got {degrees}")
    z = 1.959964
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))


def flags(times_ms: Sequence[float]) -> list[str]:
    """`bimodal`, `drifting`: shapes for which one median is not the whole story."""
    found = []
    if _bimodal(times_ms):
        found.append("bimodal")
    if _drifting(times_ms):
        found.append("drifting")
    return found


def _bimodal(times_ms: Sequence[float]) -> bool:
    values = np.sort(np.log(np.clip(np.asarray(times_ms, dtype=float), 1e-9, None)))
    n = len(values)
    if n < 40:
        return False
    # The best split in two by the variance between them (Otsu), then Ashman's distance of the two.
    sums = np.cumsum(values)
    left = np.arange(math.ceil(SHARE * n), n - math.ceil(SHARE * n) + 1)
    means = sums[left - 1] / left, (sums[-1] - sums[left - 1]) / (n - left)
    at = int(np.argmax(left * (n - left) * (means[1] - means[0]) ** 2))
    k = int(left[at])
    # Inside each cluster only the middle counts, or a single outlier would widen it.
    spreads = [_spread(part) for part in (values[:k], values[k:])]
    pooled = math.sqrt((spreads[0] ** 2 + spreads[1] ** 2) / 2)
    distance = float(np.median(values[k:]) - np.median(values[:k]))
    # Under two percent apart is of no consequence, however sharp.
    return distance > 0.02 and distance > APART * pooled


def _spread(part: np.ndarray) -> float:
    low, high = np.quantile(part, [0.16, 0.84])
    return float(high - low) / 2


def _drifting(times_ms: Sequence[float]) -> bool:
    values = np.asarray(times_ms, dtype=float)
    third = len(values) // 3
    if third < 15:
        return False
    first, last = values[:third], values[-third:]
    change = abs(float(np.median(last) / np.median(first)) - 1.0)
    ranks = np.argsort(np.argsort(np.concatenate([first, last]))) + 1
    wins = float(ranks[third:].sum()) - third * (third + 1) / 2
    # Mann and Whitney's test; dependence between calls makes it too sure by the square root of its time.
    z = abs(wins - third * third / 2) / math.sqrt(third * third * (2 * third + 1) / 12)
    z /= math.sqrt(max(autocorrelation_time(_detrended(part)) for part in (first, last)))
    return change > DRIFT_CHANGE and z > DRIFT_Z


def _detrended(part: np.ndarray) -> np.ndarray:
    at = np.arange(len(part))
    return part - np.polyval(np.polyfit(at, part, 1), at)


@dataclass(frozen=True, slots=True)
class Verdict:
    """valid; semi-valid: true, but read the reasons first; invalid: the device did not run as it should."""

    verdict: str
    reasons: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {"verdict": self.verdict, "reasons": list(self.reasons)}


def judge(
    latency: Mapping[str, Any],
    shapes: Sequence[str],
    states: Sequence[Mapping[str, Any]],
    cores: int,
    load: float | None = None,
) -> Verdict:
    """Verdict on one subject from its summary, its flags, the states recorded before, during and after its rounds,
    each with its `phase`, and the load average before anything was measured.
    """
    doubts = [f"the latencies are {shape}" for shape in shapes]
    if latency.get("p90_early_stopping_ms") is None:
        doubts.append(f"{latency['n']} calls are too few for a p90 (64 are needed)")
    if load is not None and load > BUSY_LOAD * cores:
        doubts.append(f"other work was running: load average {load:.1f} on {cores} cores before the start")
    # An idle core clocks down: what it does before and after the rounds is no fall.
    slowed = throttling([state for state in states if state.get("phase") == "rounds"], states)
    faults = [slowed] if slowed else []
    if faults:
        return Verdict("invalid", (*faults, *doubts))
    return Verdict("semi-valid", tuple(doubts)) if doubts else Verdict("valid")


def throttling(during: Sequence[Mapping[str, Any]], around: Sequence[Mapping[str, Any]]) -> str | None:
    """What to say where the clock was lower in one of the states `during` than in the best `around` by a tenth."""
    low, high = (
        [max(state["clocks_khz"]) for state in states if state.get("clocks_khz")] for states in (during, around)
    )
    if low and high and min(low) < (1.0 - CLOCK_DROP) * max(high):
        return f"throttled: the clock fell from {max(high) / 1e6:.2f} to {min(low) / 1e6:.2f} GHz"
    return None


def with_doubts(verdict: Verdict, doubts: Sequence[str]) -> Verdict:
    """The same with more reasons; what was valid is then semi-valid."""
    if not doubts:
        return verdict
    return Verdict("semi-valid" if verdict.verdict == "valid" else verdict.verdict, (*verdict.reasons, *doubts))


def overall(verdicts: Sequence[Verdict], names: Sequence[str]) -> Verdict:
    """The worst of several, with each reason once and the subjects that it concerns if not all."""
    order = ("valid", "semi-valid", "invalid")
    worst = max((v.verdict for v in verdicts), key=order.index, default="valid")
    reasons: dict[str, list[str]] = {}
    for verdict, name in zip(verdicts, names, strict=True):
        for reason in verdict.reasons:
            reasons.setdefault(reason, []).append(name)
    return Verdict(
        worst, tuple(r if len(who) == len(names) else f"{', '.join(who)}: {r}" for r, who in reasons.items())
    )


# Against a baseline -------------------------------------------------------------------------------


def compare_with_baseline(
    baseline: Mapping[str, Any], current: Mapping[str, Any], *, max_regression: float
) -> list[dict[str, Any]]:
    """For each subject in both results: `ratio` current/baseline of the medians, its interval, and `verdict`.

    pass: surely not slower than by `max_regression` (a fraction); fail: surely slower; inconclusive: the interval
    holds the bound. The interval divides the ends of both medians' intervals, so it is wider than 95 %. A subject of
    the baseline that was not measured now is inconclusive too: it has no ratio, and `reason` says why. Raises
    InconclusiveError if the two were not measured on equal terms, if one of them is no valid measurement, or if they
    have no subject in common.
    """
    _check_sound("the baseline", baseline)
    _check_sound("this run", current)
    _check_same_terms(baseline, current)
    before = {_key(subject): subject for subject in baseline["subjects"]}
    after = {_key(subject): subject for subject in current["subjects"]}
    if before.keys().isdisjoint(after):
        raise InconclusiveError(
            "the baseline and this run have no subject in common", hint="measure the same artifacts as in the baseline"
        )
    failed = {one["name"]: one["message"] for one in current.get("failed") or ()}
    return [
        _compare(subject["latency"], after[key], 1.0 + max_regression)
        if key in after
        else _absent(subject["name"], failed)
        for key, subject in before.items()
    ]


def _key(subject: Mapping[str, Any]) -> tuple[Any, ...]:
    return (*(subject[key] for key in ("name", "role", "target", "precision")), subject["complexity"]["size"])


def _check_sound(which: str, results: Mapping[str, Any]) -> None:
    validity = results.get("validity") or {}
    if validity.get("verdict") == "invalid" or results.get("interrupted"):
        reasons = validity.get("reasons") or [f"broke off: {results.get('interrupted')}"]
        raise InconclusiveError(f"{which} is invalid: {'; '.join(reasons)}", hint="measure it again")


# By the word that is said: whether both have to have it.
TERMS = {"machine": True, "cores": True, "batch": True, "threads": True} | dict.fromkeys(
    ("cpu", "device", "system on a chip", "board", "power mode", "fixed-performance mode", "governor"), False
)
IDENTITY = ("cpu", "device", "system on a chip", "board")


def _check_same_terms(baseline: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    old, new = _terms(baseline), _terms(current)
    compared = [name for name, always in TERMS.items() if always or None not in (old[name], new[name])]
    if all(old[name] is None or new[name] is None for name in IDENTITY):
        # Of a device that does not say what it is, the address is all that is known.
        compared.append("address")
    for name in compared:
        if old[name] != new[name]:
            raise InconclusiveError(
                f"the baseline was measured with another {name}: {old[name]!r}, now {new[name]!r}",
                hint="measure the baseline again here, in the same way",
            )


def _terms(results: Mapping[str, Any]) -> dict[str, Any]:
    environment, settings, device = results["environment"], results["settings"], results.get("device") or {}
    facts = device.get("facts") or {}
    return {
        **{name: environment.get(name) for name in ("cpu", "machine", "cores", "governor")},
        **{name: settings.get(name) for name in ("batch", "threads")},
        "device": device.get("name"),
        "system on a chip": device.get("soc"),
        "board": facts.get("board"),
        "power mode": facts.get("power mode"),
        "fixed-performance mode": device.get("fixed_performance"),
        "address": device.get("url", "local"),
    }


def _absent(name: str, failed: Mapping[str, str]) -> dict[str, Any]:
    reason = f"could not be measured: {failed[name]}" if name in failed else "was not measured in this run"
    return {"subject": name, "ratio": None, "interval": None, "verdict": "inconclusive", "reason": reason}


def _compare(before: Mapping[str, Any], subject: Mapping[str, Any], bound: float) -> dict[str, Any]:
    after = subject["latency"]
    low = after["p50_interval_ms"][0] / before["p50_interval_ms"][1]
    high = after["p50_interval_ms"][1] / before["p50_interval_ms"][0]
    verdict = "pass" if high <= bound else "fail" if low > bound else "inconclusive"
    ratio = after["p50_ms"] / before["p50_ms"]
    return {"subject": subject["name"], "ratio": ratio, "interval": [low, high], "verdict": verdict, "reason": None}
