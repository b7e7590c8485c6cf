"""`dspkd bench`: teacher beside student, any number of artifacts, one interleaved run, one JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dspkd.artifact import GOLDEN
from dspkd.devices import open_device
from dspkd.errors import DeviceError, UsageError
from dspkd.models import create_model
from dspkd.preprocess import resize_square
from dspkd.student import load_student
from dspkd_bench.agent import Plan, Rule, describe, measure_calls
from dspkd_bench.complexity import count
from dspkd_bench.energy import PowerTrace, energy_per_inference, read_trace
from dspkd_bench.environment import describe_environment, facts, load_average
from dspkd_bench.latency import Series, StopRule, latency_summary, ratio_of_medians, sustained_summary, thinned
from dspkd_bench.memory import measure_memory
from dspkd_bench.peers import stock_subjects
from dspkd_bench.phone import watch_phone
from dspkd_bench.recording import Recording
from dspkd_bench.remote import Model, measure_remote
from dspkd_bench.statistics import Verdict, flags, judge, overall, throttling, with_doubts
from dspkd_bench.subjects import Subject, open_subject

__all__ = ["RESULTS_SCHEMA_VERSION", "BenchConfig", "run_bench"]

RESULTS_SCHEMA_VERSION = 1
LATENCY_PHASES = ("before", "rounds", "after")
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """`folders` are artifacts, runs or students; `teacher` is a model folder to compare with.

    `pixels`, uint8 (N, H, W, 3) squares, are the pictures to run on, one after the other; without them seeded noise
    is used. The time of these networks does not depend on what they see, as long as it is no degenerate (denormal)
    input.
    """

    folders: Sequence[Path]
    teacher: Path | None = None
    threads: int = 1
    memory: bool = True
    stop: StopRule = field(default_factory=StopRule)
    command: str = ""
    pixels: np.ndarray | None = None
    device: str = "local"
    """`local`, or what `dspkd.devices.open_device` takes."""
    peers: Sequence[str] = ()
    """Out of `dspkd_bench.peers.PEERS`: the networks among `folders`, but not the teacher, in these forms too."""
    sustained_s: float = 0.0
    """Then each subject also runs alone for so long, and its energy is measured where there is a sensor."""

    @property
    def plan(self) -> Plan:
        return Plan(Rule(**asdict(self.stop)), self.sustained_s)


@dataclass(slots=True)
class _Measured:
    """What measuring gave, here or on a device; `recording` and `cold` by the subjects' places."""

    environment: dict[str, Any]
    device: dict[str, Any]
    recording: Recording
    cold: dict[int, dict[str, Any]]
    """load_ms, first_inference_ms, memory, runtime, device_check; what was not measured is absent."""
    doubts: list[str] = field(default_factory=list)
    """Why the device may not have been itself."""


def run_bench(config: BenchConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Measure everything once and return results.json's content (schema version 1).

    `subjects` hold complexity, latency, memory and accuracy of each; `ratios` say how many times smaller or faster each
    student is than the teacher, on the same runtime where the teacher was exported for it, else in PyTorch. On a
    device only artifacts can be measured; those it cannot run are in `failed`, with the reason, and a run that broke
    off says why in `interrupted`.
    """
    if not config.folders and config.teacher is None:
        raise UsageError("nothing to measure", hint="give artifact, run or student folders, or --teacher")
    here = config.device == "local"
    teacher_sha256 = load_student(config.teacher).card.weights_sha256 if config.teacher else None
    teacher = [config.teacher] if config.teacher and here else []
    folders = list(dict.fromkeys([*teacher, *config.folders]))
    subjects = [
        open_subject(folder, threads=config.threads, teacher_sha256=teacher_sha256, here=here) for folder in folders
    ]
    networks = [s.path for s in subjects if s.target == "pytorch" and s.role != "teacher"]
    if config.peers and not (here and networks):
        raise UsageError(
            "peers are stock exports of a network in PyTorch, made and measured on this machine",
            hint="give its run or student folder too, for example as --student" if here else "leave --device out",
        )
    with stock_subjects(networks, config.peers, threads=config.threads) as (peers, unbuilt):
        subjects += peers
        named = dict(zip(_unique_names(subjects), subjects, strict=True))
        measured = (_measure_here if here else _measure_there)(named, config, progress)
        results = _results(named, measured, config)
    results["failed"] += [{"name": name, "message": message} for name, message in unbuilt.items()]
    return results


def _measure_here(named: dict[str, Subject], config: BenchConfig, progress: Progress | None) -> _Measured:
    calls = {str(i): _call(subject, config.pixels) for i, subject in enumerate(named.values())}
    environment = describe_environment(config.threads)
    recording = Recording(machine=describe())

    def say(event: str, **values: Any) -> None:
        recording.take({"event": event, **values})
        if progress and event == "times":
            if values.get("phase") == "sustained":
                progress(values["index"], len(calls), "measuring sustained load")
            else:
                progress(len(recording.series[values["index"]].ms), config.stop.max_rounds, "measuring latency")

    measure_calls(calls, config.plan, say)
    environment["load_average_1min_after"] = load_average()
    cold: dict[int, dict[str, Any]] = {i: {"runtime": subject.runtime} for i, subject in enumerate(named.values())}
    for number, subject in enumerate(named.values() if config.memory else ()):
        if progress:
            progress(number, len(named), "measuring memory")
        # Another process could open the folder of a peer's network, and would measure PyTorch.
        memory = None if subject.role == "peer" else measure_memory(subject.path, threads=config.threads)
        if memory:
            cold[number] |= {key: memory.pop(key) for key in ("load_ms", "first_inference_ms")} | {"memory": memory}
    device = {"url": "local", "kind": "local", "name": environment["cpu"], "machine": environment["machine"]}
    return _Measured(environment, device | {"facts": facts(recording.machine)}, recording, cold)


def _measure_there(named: dict[str, Subject], config: BenchConfig, progress: Progress | None) -> _Measured:
    models = [Model(subject.model_file, subject.target, _picture(subject)) for subject in named.values()]
    if progress:
        progress(0, 1, f"measuring on {config.device}")
    with open_device(config.device) as device, watch_phone(device) as phone:
        url = device.url
        run = measure_remote(device, models, config.stop, threads=config.threads, sustained_s=config.sustained_s)
    names, subjects = list(named), list(named.values())
    if not run.series:
        said = "; ".join(f"{names[i]}: {why}" for i, why in run.failed.items())
        raise DeviceError(
            f"{config.device} can run none of them: {said}",
            hint=f"see what is missing there: dspkd doctor --device {config.device}",
        )
    return _Measured(
        environment=_environment_there(run, config.threads),
        device={
            "url": url,
            "kind": url.partition(":")[0],
            "name": run.machine.get("cpu"),
            "machine": run.machine["machine"],
            "facts": facts(run.machine),
            **(phone.as_dict() if phone else {}),
        },
        doubts=phone.doubts if phone else [],
        recording=run,
        cold={i: _cold_there(subjects[i], event, run.outputs.get(i)) for i, event in run.loaded.items()},
    )


def _environment_there(run: Recording, threads: int) -> dict[str, Any]:
    first, last = (run.states[0], run.states[-1]) if run.states else ({}, {})
    said = {key: run.machine.get(key) for key in ("cpu", "cores", "affinity", "os", "machine", "python")}
    return said | {
        "governor": ", ".join(first.get("governor") or []) or None,
        "load_average_1min": first.get("load1"),
        "load_average_1min_after": last.get("load1"),
        "threads": threads,
        "packages": run.machine.get("packages") or {},
    }


def _cold_there(subject: Subject, event: dict[str, Any], output: list[float] | None) -> dict[str, Any]:
    cold: dict[str, Any] = {
        "runtime": event["runtime"],
        "load_ms": event["load_ms"],
        "first_inference_ms": event["first_ms"],
    }
    golden = _golden(subject)
    if golden and output:
        difference = float(np.abs(np.asarray(output) - golden[1]).max())
        cold["device_check"] = {
            "pictures": 1,
            "max_abs_difference": difference,
            "same_class": bool(int(np.argmax(output)) == int(np.argmax(golden[1]))),
        }
    return cold


def _golden(subject: Subject) -> tuple[np.ndarray, np.ndarray] | None:
    """An artifact's first golden picture, and what PyTorch makes of it."""
    file = subject.path / GOLDEN
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as stored:
        return stored["pixels"][0], stored["pytorch"][0]


def _picture(subject: Subject) -> np.ndarray:
    golden = _golden(subject)
    return golden[0] if golden else _noise(subject.size)[0]


def _noise(size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)


def _results(named: dict[str, Subject], measured: _Measured, config: BenchConfig) -> dict[str, Any]:
    names, run = list(named), measured.recording
    trace = _trace(run, config)
    records, verdicts = [], []
    for index, (name, subject) in enumerate(named.items()):
        if index in run.series:
            record, verdict = _record(index, name, subject, measured)
            record |= _under_load(index, run, trace)
            records.append(record)
            verdicts.append(verdict)
    validity = overall(verdicts, [record["name"] for record in records]).as_dict()
    if run.interrupted:
        validity = {"verdict": "invalid", "reasons": [f"broke off: {run.interrupted}", *validity["reasons"]]}
    pictures = "seeded noise" if config.pixels is None else f"{len(config.pixels)} pictures"
    return {
        "schema_version": RESULTS_SCHEMA_VERSION,
        "kind": "bench-results",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": config.command,
        "environment": measured.environment,
        "device": measured.device,
        "settings": {
            "batch": 1,
            "threads": config.threads,
            "input": pictures if config.device == "local" else "the artifact's first golden picture",
            "sustained_seconds": config.sustained_s,
            **asdict(config.stop),
        },
        "subjects": records,
        "ratios": _ratios(records, {names[i]: series.ms for i, series in run.series.items()}),
        "validity": validity,
        "states": _states(run, names, trace),
        "failed": [{"name": names[i], "message": message} for i, message in run.failed.items()],
        "interrupted": run.interrupted,
    }


def _trace(run: Recording, config: BenchConfig) -> PowerTrace | str:
    """What the power sensors said, or why there is nothing of them."""
    if not config.sustained_s:
        return "asked for with --sustained"
    try:
        return read_trace(run.sensors, run.power, run.machine.get("board"))
    except ValueError as error:
        return str(error)


def _under_load(index: int, run: Recording, trace: PowerTrace | str) -> dict[str, Any]:
    """The subject's `sustained` and `energy`; a phase that did not reach its end gives neither."""
    if index not in run.idle_s:
        reason = trace if isinstance(trace, str) else "the sustained phase did not reach its end"
        return {"energy": {"not_measured": reason}}
    series = run.sustained[index]
    states = [state for state in run.states if state.get("index") == index and state.get("phase") == "sustained"]
    slowed = throttling(states, states)
    remarks = [f"the latencies are {shape}" for shape in flags(series.ms)] + ([slowed] if slowed else [])
    return {
        "sustained": sustained_summary(series) | {"remarks": remarks},
        "energy": _energy(trace, run.idle_s[index], series),
    }


def _energy(trace: PowerTrace | str, idle_s: tuple[float, float], series: Series) -> dict[str, Any]:
    if isinstance(trace, str):
        return {"not_measured": trace}
    try:
        return energy_per_inference(trace, idle_s, series)
    except ValueError as error:
        return {"not_measured": str(error)}


def _states(run: Recording, names: Sequence[str], trace: PowerTrace | str) -> list[dict[str, Any]]:
    """Thinned, with the name of a subject that ran or waited alone, and its power."""
    states = []
    for state in _thin_states(run.states):
        index = state.pop("index", None)
        if index is not None and index < len(names):
            power = {} if isinstance(trace, str) else trace.rails_w(state["at_ms"] / 1e3)
            state |= {"subject": names[index]} | ({"power_w": power} if power else {})
        states.append(state)
    return states


def _thin_states(states: list[dict[str, Any]], most: int = 120) -> list[dict[str, Any]]:
    """First, last, and evenly many between."""
    kept = states if len(states) <= most else [states[i * (len(states) - 1) // (most - 1)] for i in range(most)]
    return [dict(state) for state in kept]


def _unique_names(subjects: Sequence[Subject]) -> list[str]:
    names: list[str] = []
    for subject in subjects:
        taken = sum(name == subject.name or name.startswith(f"{subject.name} (") for name in names)
        names.append(f"{subject.name} ({subject.path.name})" if taken else subject.name)
    return names


def _call(subject: Subject, pixels: np.ndarray | None) -> Callable[[], object]:
    """One inference with batch 1; the input is ready in memory."""
    if pixels is None:
        pictures = [subject.input_of(_noise(subject.size))]
    else:
        squares = (resize_square(Image.fromarray(one), subject.size, "bilinear") for one in pixels)
        pictures = [subject.input_of(square[None]) for square in squares]
    following = cycle(pictures)
    return lambda: subject.run(next(following))


def _record(index: int, name: str, subject: Subject, measured: _Measured) -> tuple[dict[str, Any], Verdict]:
    complexity = count(create_model(subject.architecture, subject.num_classes), subject.size)
    series, cold = measured.recording.series[index], measured.cold.get(index, {})
    latency, shapes = latency_summary(series.ms), flags(series.ms)
    # What happens later, under a load of minutes, says nothing against these times.
    states = [state for state in measured.recording.states if state.get("phase", "rounds") in LATENCY_PHASES]
    cores = measured.environment.get("cores") or 1
    verdict = with_doubts(judge(latency, shapes, states, cores), measured.doubts)
    verdict = _with_answer(verdict, cold.get("device_check"))
    record = {
        "name": name,
        "role": subject.role,
        "path": str(subject.path),
        "architecture": subject.architecture,
        "target": subject.target,
        "precision": subject.precision,
        "runtime": cold.get("runtime") or subject.runtime,
        "weights_sha256": subject.weights_sha256,
        "file_bytes": subject.file_bytes,
        "complexity": complexity.as_dict(),
        "load_ms": cold.get("load_ms"),
        "first_inference_ms": cold.get("first_inference_ms"),
        "latency": latency,
        "throughput_per_s": 1e3 / latency["mean_ms"],
        "series": thinned(series),
        "flags": shapes,
        "validity": verdict.as_dict(),
        "memory": cold.get("memory"),
        "device_check": cold.get("device_check"),
        "validation": subject.validation,
        "certificate": subject.certificate,
    }
    return record, verdict


def _with_answer(verdict: Verdict, check: dict[str, Any] | None) -> Verdict:
    """The time of a wrong answer is worth nothing, whatever the clock says."""
    if check is None or check["same_class"]:
        return verdict
    return Verdict("invalid", ("the device gives a wrong answer for the artifact's golden picture", *verdict.reasons))


def _ratios(records: list[dict[str, Any]], times: dict[str, list[float]]) -> list[dict[str, Any]]:
    teachers = {record["target"]: record for record in reversed(records) if record["role"] == "teacher"}
    ratios = []
    for record in records:
        if record["role"] in ("teacher", "peer") or not teachers:
            continue
        teacher = teachers.get(record["target"]) or teachers.get("pytorch") or next(iter(teachers.values()))
        own, theirs = record["complexity"], teacher["complexity"]
        ratios.append(
            {
                "subject": record["name"],
                "teacher": teacher["name"],
                "same_runtime": teacher["target"] == record["target"],
                "parameters": theirs["parameters"] / own["parameters"],
                "macs": theirs["macs"] / own["macs"],
                "file_bytes": teacher["file_bytes"] / record["file_bytes"],
                "latency": ratio_of_medians(times[teacher["name"]], times[record["name"]]),
            }
        )
    return ratios
