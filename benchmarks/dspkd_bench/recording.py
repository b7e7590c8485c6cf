"""What a measurement says while it runs: the agent's events, gathered, from a device or from this machine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dspkd_bench import agent
from dspkd_bench.latency import Series

__all__ = ["INTERRUPTED", "Recording"]

INTERRUPTED = "interrupted from the keyboard"
"""Why a run broke off that somebody ended with Ctrl-C."""
BY_INDEX = ("loaded", "cold", "outputs", "failed", "series", "batches", "batches_failed", "sustained", "idle_s")
LATENCY_PHASES = ("before", "rounds", "after")


@dataclass(slots=True)
class Recording:
    """By index of the subject; what broke off holds what came before. Times are since the warm-up ended."""

    machine: dict[str, Any] = field(default_factory=dict)
    loaded: dict[int, dict[str, Any]] = field(default_factory=dict)
    cold: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Of a process of its own: load_ms, first_ms, before_kib, peak_kib, resident_kib."""
    outputs: dict[int, list[float]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    series: dict[int, Series] = field(default_factory=dict)
    batches: dict[int, dict[int, Series]] = field(default_factory=dict)
    """By index, then by size."""
    batches_failed: dict[int, str] = field(default_factory=dict)
    """Why larger batches, or one of them, were not measured."""
    sustained: dict[int, Series] = field(default_factory=dict)
    idle_s: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Beginning and end of the pause before the sustained phase, of those that reached the phase's end."""
    sampled: set[int] = field(default_factory=set)
    """Those of `idle_s` whose program also read power sensors, on the same clock."""
    sensors: dict[str, Any] | None = None
    """The agent's Sensors, once they were looked for."""
    power: list[tuple[float, list[str | None]]] = field(default_factory=list)
    """(seconds, texts of the sensors' columns)"""
    states: list[dict[str, Any]] = field(default_factory=list)
    """Each with the number of the `program` that said it, where several were joined."""
    programs: list[tuple[int, ...]] = field(default_factory=list)
    """The subjects of each program that was joined."""
    interrupted: str | None = None
    """Why it did not reach its end."""

    def take(self, event: Mapping[str, Any]) -> None:
        """One event. KeyError, TypeError, ValueError or OverflowError if malformed; an unknown one is let pass."""
        taker = _TAKERS.get(event["event"])
        if taker:
            taker(self, event)

    def join(self, part: Recording, indices: Sequence[int]) -> None:
        """Add what another program measured; its subject number i is `indices[i]` here.

        It ran after those that are here, so its times go on where they end: `part` itself is changed.
        """
        part._delay(self._end_s())
        self.machine = part.machine | self.machine
        for name in BY_INDEX:
            mine, theirs = getattr(self, name), getattr(part, name)
            mine.update({indices[i]: value for i, value in theirs.items() if i < len(indices)})
        self.sampled |= {indices[i] for i in part.sampled if i < len(indices)}
        for state in part.states:
            if state.get("index", len(indices)) < len(indices):
                state["index"] = indices[state["index"]]
            state["program"] = len(self.programs)
        self.states += part.states
        self.programs.append(tuple(indices))
        self.sensors = part.sensors or self.sensors
        self.power += part.power
        self.interrupted = part.interrupted

    def states_around(self, index: int) -> list[dict[str, Any]]:
        """Before, during and after the rounds that the subject took part in, of the program that ran it alone."""
        own = {number for number, subjects in enumerate(self.programs) if index in subjects} or {0}
        return [
            state
            for state in self.states
            if state.get("program", 0) in own and state.get("phase", "rounds") in LATENCY_PHASES
        ]

    def _every_series(self) -> Iterator[Series]:
        yield from (*self.series.values(), *self.sustained.values())
        for sizes in self.batches.values():
            yield from sizes.values()

    def _end_s(self) -> float:
        ends = [one.at_s[-1] + one.ms[-1] / 1e3 for one in self._every_series() if one.ms]
        ends += [state["at_ms"] / 1e3 for state in self.states if state.get("at_ms") is not None]
        ends += [at_s for at_s, _ in self.power[-1:]]
        return max(ends, default=0.0)

    def _delay(self, seconds: float) -> None:
        for one in self._every_series():
            one.at_s[:] = [at_s + seconds for at_s in one.at_s]
        for state in self.states:
            if state.get("at_ms") is not None:
                state["at_ms"] += seconds * 1e3
        self.power = [(at_s + seconds, row) for at_s, row in self.power]
        self.idle_s = {index: (start + seconds, end + seconds) for index, (start, end) in self.idle_s.items()}


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def _start(recording: Recording, event: Mapping[str, Any]) -> None:
    if event["protocol"] != agent.PROTOCOL:
        raise ValueError("another protocol")
    recording.machine = {key: value for key, value in event.items() if key not in ("event", "protocol", "program")}


def _loaded(recording: Recording, event: Mapping[str, Any]) -> None:
    recording.loaded[int(event["index"])] = dict(event)


def _cold(recording: Recording, event: Mapping[str, Any]) -> None:
    names = ("load_ms", "first_ms", "before_kib", "peak_kib", "resident_kib")
    recording.cold[int(event["index"])] = {
        name: None if event[name] is None else _number(event[name]) for name in names
    }


def _output(recording: Recording, event: Mapping[str, Any]) -> None:
    recording.outputs[int(event["index"])] = [float(value) for value in event["probabilities"]]


def _failed(recording: Recording, event: Mapping[str, Any]) -> None:
    if "batch" in event:
        recording.batches_failed.setdefault(int(event["index"]), f"batch {int(event['batch'])}: {event['message']}")
    else:
        recording.failed[int(event["index"])] = str(event["message"])


def _times(recording: Recording, event: Mapping[str, Any]) -> None:
    index = int(event["index"])
    if event.get("phase") == "sustained":
        series = recording.sustained.setdefault(index, Series())
    elif "batch" in event:
        series = recording.batches.setdefault(index, {}).setdefault(int(event["batch"]), Series())
    else:
        series = recording.series.setdefault(index, Series())
    if len(event["at_ms"]) != len(event["ms"]):
        raise ValueError("two lengths")
    series.at_s.extend(_number(value) / 1e3 for value in event["at_ms"])
    series.ms.extend(_number(value) for value in event["ms"])


def _state(recording: Recording, event: Mapping[str, Any]) -> None:
    state = {key: value for key, value in event.items() if key != "event"}
    if "index" in state:
        state["index"] = int(state["index"])
    if state.get("at_ms") is not None:
        state["at_ms"] = _number(state["at_ms"])
    recording.states.append(state)


def _sensors(recording: Recording, event: Mapping[str, Any]) -> None:
    columns, fixed = [str(column) for column in event["columns"]], dict(event["fixed"])
    recording.sensors = {"columns": columns, "fixed": fixed, "denied": [str(name) for name in event["denied"]]}


def _power(recording: Recording, event: Mapping[str, Any]) -> None:
    if len(event["at_ms"]) != len(event["rows"]):
        raise ValueError("two lengths")
    rows = ([None if text is None else str(text) for text in row] for row in event["rows"])
    recording.power.extend((_number(at_ms) / 1e3, row) for at_ms, row in zip(event["at_ms"], rows, strict=True))


def _sustained(recording: Recording, event: Mapping[str, Any]) -> None:
    start_ms, end_ms = event["idle_ms"]
    index = int(event["index"])
    recording.idle_s[index] = _number(start_ms) / 1e3, _number(end_ms) / 1e3
    if recording.sensors is not None:
        recording.sampled.add(index)


def _end(recording: Recording, event: Mapping[str, Any]) -> None:
    recording.interrupted = None


_TAKERS = {
    "start": _start,
    "loaded": _loaded,
    "cold": _cold,
    "output": _output,
    "failed": _failed,
    "times": _times,
    "state": _state,
    "sensors": _sensors,
    "power": _power,
    "sustained": _sustained,
    "end": _end,
}
