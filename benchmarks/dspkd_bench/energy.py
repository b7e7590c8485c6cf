"""Energy per inference: what the power sensors said during a sustained phase, less what the pause before needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from dspkd_bench.latency import Series
from dspkd_bench.sensors import (
    CHANNELS,
    accumulated_counter,
    accumulated_power,
    parse_hwmon,
    parse_tegrastats,
    powercap_labels,
    powercap_total,
    total_rail,
)
from dspkd_bench.statistics import student_quantile

__all__ = ["PowerTrace", "energy_per_inference", "read_trace"]

Row = tuple[float, list[str | None]]
# The beginning of a pause still has the work before it in it.
SETTLING = 0.2
BLOCKS, LEAST_BLOCKS, SAMPLES_A_BLOCK = 10, 5, 3
# A power sensor says nothing of what lies between two samples that are further apart.
LONGEST_GAP_S = 1.0
STATE_WINDOW_S = 1.0


@dataclass(frozen=True, slots=True)
class PowerTrace:
    """The energy that went into the board, or the processors, over time."""

    sensor: str
    """The rails and what measures them: `VDD_IN, ina3221`."""
    counts: bool
    """It is a counter of energy, so that nothing is lost between two readings however far apart."""
    at_s: np.ndarray
    energy_mj: np.ndarray
    """Since the first sample, at each of them."""
    rails: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """{rail: its own times and energies}"""

    def rails_w(self, at_s: float) -> dict[str, float]:
        """The mean power of each rail in the second before, in W; without those that were not measured then."""
        found = {}
        for name, (times, energies) in self.rails.items():
            start, end = max(at_s - STATE_WINDOW_S, times[0]), min(at_s, times[-1])
            if end - start > STATE_WINDOW_S / 2:
                before, after = np.interp([start, end], times, energies)
                found[name] = round(float(after - before) / (end - start) / 1e3, 4)
        return found


def read_trace(sensors: Mapping[str, Any] | None, rows: Sequence[Row], board: str | None) -> PowerTrace:
    """The trace of what the agent sent: its Sensors, and (seconds, texts of the columns).

    ValueError with the reason where there is no sensor, none that may be read, none whose rails make up a known whole,
    or too few samples.
    """
    if sensors is None or not sensors["columns"]:
        raise ValueError(_missing(sensors["denied"] if sensors else []))
    columns: list[str] = sensors["columns"]
    if any(len(row) != len(columns) for _, row in rows):
        raise ValueError("the samples have another number of columns than was said")
    fault: ValueError | None = None
    for prefix, read in (("hwmon", _of_monitors), ("intel-rapl", _of_counters), ("tegrastats", _of_tegrastats)):
        if any(column.startswith(prefix) for column in columns):
            try:
                return read(columns, sensors["fixed"], rows, board)
            except ValueError as error:
                fault = fault or error
    raise fault or ValueError(_missing([]))


def _missing(denied: Sequence[str]) -> str:
    if denied:
        return f"the power sensor may not be read there by this user ({denied[0]})"
    return "no power sensor that can be read"


def _of_monitors(
    columns: Sequence[str], fixed: Mapping[str, str], rows: Sequence[Row], board: str | None
) -> PowerTrace:
    chips = {name.partition("/")[0]: text for name, text in fixed.items() if name.endswith("/name")}
    chips = {folder: chip for folder, chip in chips.items() if folder.startswith("hwmon") and chip in CHANNELS}
    samples = []
    for at_s, row in rows:
        texts = {**fixed, **{name: text or "" for name, text in zip(columns, row, strict=True)}}
        rails: dict[str, float] = {}
        for folder in chips:
            files = {name.partition("/")[2]: text for name, text in texts.items() if name.startswith(folder + "/")}
            for rail in parse_hwmon(files):
                rails[f"{rail.name} ({folder})" if rail.name in rails else rail.name] = rail.mw
        samples.append((at_s, rails))
    return _of_rails(samples, board, " and ".join(sorted(set(chips.values()))))


def _of_tegrastats(
    columns: Sequence[str], fixed: Mapping[str, str], rows: Sequence[Row], board: str | None
) -> PowerTrace:
    samples = []
    for at_s, (line, *_) in rows:
        try:
            rails = parse_tegrastats(line or "").rails_mw
        except ValueError:
            continue
        samples.append((at_s, {name: float(now) for name, (now, _) in rails.items()}))
    return _of_rails(samples, board, "tegrastats")


def _of_rails(samples: Sequence[tuple[float, dict[str, float]]], board: str | None, chip: str) -> PowerTrace:
    totals = [(at_s, total_rail(rails, board)) for at_s, rails in samples]
    kinds = Counter(total[0] for _, total in totals if total is not None)
    if not kinds:
        seen = sorted({name for _, rails in samples for name in rails})
        raise ValueError(f"none of the rails is known to be the board's input: {', '.join(seen) or 'there are none'}")
    [(names, _)] = kinds.most_common(1)
    whole = [(at_s, total[1]) for at_s, total in totals if total is not None and total[0] == names]
    rails = {}
    for name in sorted({name for _, found in samples for name in found}):
        own = [(at_s, found[name]) for at_s, found in samples if name in found]
        if len(own) > 1:
            rails[name] = _arrays(own, accumulated_power(own))
    at_s, energy = _arrays(whole, accumulated_power(whole))
    return PowerTrace(f"{' + '.join(names)}, {chip}", counts=False, at_s=at_s, energy_mj=energy, rails=rails)


def _arrays(samples: Sequence[tuple[float, float]], energies: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([at_s for at_s, _ in samples]), np.array(energies)


def _of_counters(
    columns: Sequence[str], fixed: Mapping[str, str], rows: Sequence[Row], board: str | None
) -> PowerTrace:
    zones = {name.partition("/")[0]: i for i, name in enumerate(columns) if name.startswith("intel-rapl")}
    names = {zone: fixed.get(f"{zone}/name", "") for zone in zones}
    labels, total = powercap_labels(names), powercap_total(names)
    if not total:
        raise ValueError(f"none of the powercap zones is a package: {', '.join(labels.values())}")
    # A row counts for all zones or for none, so that their sum is of one moment.
    whole = [(at_s, row) for at_s, row in rows if all(row[i] is not None for i in zones.values())]
    rails = {}
    for zone, i in zones.items():
        readings = [(at_s, int(row[i] or "")) for at_s, row in whole]
        energies = accumulated_counter(readings, int(fixed.get(f"{zone}/max_energy_range_uj", "0")))
        rails[labels[zone]] = _arrays(readings, energies)
    parts = [rails[labels[zone]] for zone in total]
    sensor = f"{' + '.join(labels[zone] for zone in total)}, powercap"
    energy = np.sum([energies for _, energies in parts], axis=0)
    return PowerTrace(sensor, counts=True, at_s=parts[0][0], energy_mj=energy, rails=rails)


@dataclass(frozen=True, slots=True)
class _Blocks:
    edges_s: np.ndarray
    """(number, 2)"""
    energy_mj: np.ndarray
    samples: int

    @property
    def seconds(self) -> np.ndarray:
        return self.edges_s[:, 1] - self.edges_s[:, 0]


def energy_per_inference(trace: PowerTrace, idle_s: tuple[float, float], series: Series) -> dict[str, Any]:
    """{"mj_per_inference", "interval", "idle_w", "active_w", "sensor", "rate_hz", "seconds"} of one sustained phase.

    `idle_s` is the pause before it and `series` its calls, one after the other. The phase is cut into blocks at the
    samples. The energy of all blocks, less the idle power for as long, is divided by the inferences in them, those that
    a cut goes through counted in part. The 95 % interval is Student's over the blocks, which are long enough to depend
    little on each other (batch means), with the idle power's own uncertainty in it; the sensor's error is not.
    ValueError with the reason if the samples are too few.
    """
    idle = _cut(trace, idle_s[0] + SETTLING * (idle_s[1] - idle_s[0]), idle_s[1])
    starts, ends = np.array(series.at_s), np.array(series.at_s) + np.array(series.ms) / 1e3
    active = _cut(trace, starts[0], ends[-1])
    # How many inferences were done by a moment: k at the start of call number k, k + 1 at its end.
    moments = np.maximum.accumulate(np.stack([starts, ends], axis=1).ravel())
    done = np.interp(active.edges_s, moments, np.repeat(np.arange(len(starts) + 1), 2)[1:-1])
    inferences = done[:, 1] - done[:, 0]
    idle_mw = float(idle.energy_mj.sum() / idle.seconds.sum())
    count, seconds = float(inferences.sum()), float(active.seconds.sum())
    if count <= 0:
        raise ValueError("no inference ended while the power was sampled")
    energy = (float(active.energy_mj.sum()) - idle_mw * seconds) / count
    residuals = (active.energy_mj - idle_mw * active.seconds - energy * inferences) / inferences.mean()
    of_active, of_idle = _squared_error(residuals), _squared_error(idle.energy_mj / idle.seconds)
    degrees = min(len(residuals), len(idle.energy_mj)) - 1
    half = student_quantile(degrees) * float(np.sqrt(of_active + of_idle * (seconds / count) ** 2))
    return {
        "mj_per_inference": energy,
        "interval": [energy - half, energy + half],
        "idle_w": idle_mw / 1e3,
        "active_w": float(active.energy_mj.sum()) / seconds / 1e3,
        "sensor": trace.sensor,
        "rate_hz": round((active.samples - 1) / float(active.edges_s[-1, 1] - active.edges_s[0, 0]), 1),
        "seconds": seconds,
    }


def _squared_error(values: np.ndarray) -> float:
    """Of the mean."""
    return float(values.var(ddof=1)) / len(values)


def _cut(trace: PowerTrace, start_s: float, end_s: float) -> _Blocks:
    """The part of the trace in blocks that begin and end with a sample; those with a gap in them are left out."""
    inside = np.flatnonzero((trace.at_s >= start_s) & (trace.at_s <= end_s))
    number = min(BLOCKS, (len(inside) - 1) // SAMPLES_A_BLOCK)
    if number >= LEAST_BLOCKS:
        cuts = inside[np.linspace(0, len(inside) - 1, number + 1).astype(int)]
        blocks = [(i, j) for i, j in pairwise(cuts) if _whole(trace, i, j)]
    if number < LEAST_BLOCKS or len(blocks) < LEAST_BLOCKS:
        raise ValueError(f"the sensor gave too few samples: {len(inside)} in {end_s - start_s:.1f} s")
    pairs = np.array(blocks)
    energies = trace.energy_mj[pairs]
    return _Blocks(trace.at_s[pairs], energies[:, 1] - energies[:, 0], len(inside))


def _whole(trace: PowerTrace, first: int, last: int) -> bool:
    return trace.counts or float(np.diff(trace.at_s[first : last + 1]).max()) <= LONGEST_GAP_S
