"""What a recording says of each subject alone, under load for long: burst, sustained, energy, the states meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dspkd_bench.energy import PowerTrace, energy_per_inference, read_trace
from dspkd_bench.latency import sustained_summary
from dspkd_bench.recording import Recording
from dspkd_bench.statistics import flags, throttling

__all__ = ["power_trace", "shown_states", "under_load"]

MOST_STATES = 120


def power_trace(run: Recording, sustained_s: float) -> PowerTrace | str:
    """What the power sensors said, or why there is nothing of them."""
    if not sustained_s:
        return "asked for with --sustained"
    try:
        return read_trace(run.sensors, run.power, run.machine.get("board"))
    except ValueError as error:
        return str(error)


def under_load(index: int, run: Recording, trace: PowerTrace | str) -> dict[str, Any]:
    """A subject's `sustained` and `energy`; a phase that did not reach its end gives neither."""
    if index not in run.idle_s or not run.sustained.get(index):
        reason = trace if isinstance(trace, str) else "the sustained phase did not reach its end"
        return {"energy": {"not_measured": reason}}
    series = run.sustained[index]
    states = [state for state in run.states if state.get("index") == index and state.get("phase") == "sustained"]
    slowed = throttling(states, states)
    remarks = [f"the latencies are {shape}" for shape in flags(series.ms)] + ([slowed] if slowed else [])
    return {"sustained": sustained_summary(series) | {"remarks": remarks}, "energy": _energy(index, run, trace)}


def _energy(index: int, run: Recording, trace: PowerTrace | str) -> dict[str, Any]:
    if index not in run.sampled:
        return {"not_measured": "what runs ExecuTorch programs there reads no power sensor"}
    try:
        if isinstance(trace, str):
            raise ValueError(trace)
        return energy_per_inference(trace, run.idle_s[index], run.sustained[index])
    except ValueError as error:
        return {"not_measured": str(error)}


def shown_states(run: Recording, names: Sequence[str], trace: PowerTrace | str) -> list[dict[str, Any]]:
    """First, last, and evenly many between, with the name of a subject that ran or waited alone, and its power."""
    states = []
    for state in _thinned(run.states):
        shown = {key: value for key, value in state.items() if key not in ("index", "program")}
        index = state.get("index")
        if index is not None and index < len(names):
            shown["subject"] = names[index]
            power = (
                trace.rails_w(state["at_ms"] / 1e3) if index in run.sampled and isinstance(trace, PowerTrace) else {}
            )
            if power:
                shown["power_w"] = power
        states.append(shown)
    return states


def _thinned(states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(states) <= MOST_STATES:
        return states
    return [states[i * (len(states) - 1) // (MOST_STATES - 1)] for i in range(MOST_STATES)]
