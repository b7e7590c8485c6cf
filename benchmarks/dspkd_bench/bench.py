"""`dspkd bench`: teacher beside student, any number of artifacts, one interleaved run, one JSON."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from dspkd.artifact import GOLDEN
from dspkd.devices import Device, open_device
from dspkd.errors import DeviceError, DspkdError, UsageError
from dspkd.models import create_model
from dspkd.preprocess import resize_square
from dspkd.runtimes import first_line
from dspkd.student import load_student
from dspkd_bench.agent import Plan, Rule, batched_call, describe, measure_calls, pin
from dspkd_bench.complexity import count
from dspkd_bench.environment import describe_environment, facts, load_average
from dspkd_bench.interruptible import Interruptible
from dspkd_bench.latency import Series, StopRule, latency_summary, ratio_of_medians, thinned
from dspkd_bench.memory import measure_memory, memory_record
from dspkd_bench.peers import stock_subjects
from dspkd_bench.phone import watch_phone
from dspkd_bench.recording import INTERRUPTED, Recording
from dspkd_bench.remote import Model, measure_remote
from dspkd_bench.statistics import Verdict, flags, judge, overall, with_doubts
from dspkd_bench.subject_names import absolute_path, unique_names
from dspkd_bench.subjects import Batched, ProviderError, Subject, open_batched, open_subject
from dspkd_bench.under_load import power_trace, shown_states, under_load

__all__ = ["RESULTS_SCHEMA_VERSION", "BenchConfig", "run_bench"]

RESULTS_SCHEMA_VERSION = 1
MEMORY = ("before_kib", "peak_kib", "resident_kib")
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
    batches: Sequence[int] = (1,)
    """Sizes above 1 are measured after, by those that take so many pictures in a call; 1 always is."""
    sustained_s: float = 0.0
    """Then each subject also runs alone for so long, and its energy is measured where there is a sensor."""
    cores: Sequence[int] | None = None
    """Those that may be used; None: all that this process may."""
    providers: Sequence[str] = ("cpu",)
    """ONNX Runtime's, out of `agent.PROVIDERS`: ONNX artifacts are measured with each of them."""
    keep_interrupted: bool = False
    """Whether Ctrl-C gives the results of the rounds that are done."""

    @property
    def larger_batches(self) -> tuple[int, ...]:
        return tuple(sorted({size for size in self.batches if size > 1}))

    @property
    def plan(self) -> Plan:
        return Plan(Rule(**asdict(self.stop)), self.sustained_s, self.larger_batches)


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
    off says why in `interrupted`. With `config.keep_interrupted` so does one that is ended with Ctrl-C, if anything was
    measured by then; else KeyboardInterrupt is raised.
    """
    if not config.folders and config.teacher is None:
        raise UsageError("nothing to measure", hint="give artifact, run or student folders, or --teacher")
    here = config.device == "local"
    teacher_sha256 = load_student(config.teacher).card.weights_sha256 if config.teacher else None
    teacher = [config.teacher] if config.teacher and here else []
    # A folder that is given twice, however it is spelt, is one subject.
    folders: dict[Path, Path] = {}
    for folder in (*teacher, *config.folders):
        folders.setdefault(absolute_path(folder), folder)
    with _pinned(config.cores if here else None):
        results = _run(list(folders.values()), teacher_sha256, config, here, progress)
    if results["interrupted"] == INTERRUPTED and not config.keep_interrupted:
        raise KeyboardInterrupt
    return results


@contextmanager
def _pinned(cores: Sequence[int] | None) -> Iterator[None]:
    """This thread, and what it starts, on these cores meanwhile."""
    before = os.sched_getaffinity(0) if cores is not None and hasattr(os, "sched_getaffinity") else None
    fault = pin(cores)
    if fault:
        raise UsageError(fault, hint="give --cores that it has")
    try:
        yield
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)


def _run(
    folders: Sequence[Path],
    teacher_sha256: str | None,
    config: BenchConfig,
    here: bool,
    progress: Progress | None,
) -> dict[str, Any]:
    subjects: list[Subject] = []
    unopened: dict[str, str] = {}
    for folder in folders:
        _open(folder, teacher_sha256, config, here, subjects, unopened)
    if not subjects:
        raise DeviceError(
            "none of them can be measured: " + "; ".join(f"{name}: {why}" for name, why in unopened.items()),
            hint="leave --providers out to measure on the processor",
        )
    networks = [s.path for s in subjects if s.target == "pytorch" and s.role != "teacher"]
    if config.peers and not (here and networks):
        raise UsageError(
            "peers are stock exports of a network in PyTorch, made and measured on this machine",
            hint="give its run or student folder too, for example as --student" if here else "leave --device out",
        )
    with stock_subjects(networks, config.peers, threads=config.threads) as (peers, unbuilt):
        subjects += peers
        named = dict(zip(unique_names(subjects), subjects, strict=True))
        measured = (_measure_here if here else _measure_there)(named, config, progress)
        results = _results(named, measured, config)
    for name, message in (unopened | unbuilt).items():
        results["failed"].append({"name": name, "message": message})
    return results


def _open(
    folder: Path,
    teacher_sha256: str | None,
    config: BenchConfig,
    here: bool,
    subjects: list[Subject],
    unopened: dict[str, str],
) -> None:
    """Append the folder's subjects: an ONNX artifact once for each provider, anything else once."""
    for provider in config.providers:
        try:
            subject = open_subject(
                folder, threads=config.threads, teacher_sha256=teacher_sha256, here=here, provider=provider
            )
        except ProviderError as error:
            unopened[open_subject(folder, threads=config.threads, here=False, provider=provider).name] = error.message
            continue
        subjects.append(subject)
        if subject.target != "onnx":
            return


def _measure_here(named: dict[str, Subject], config: BenchConfig, progress: Progress | None) -> _Measured:
    calls = {str(i): _call(subject, config.pixels) for i, subject in enumerate(named.values())}
    environment = describe_environment(config.threads)
    recording = Recording(machine=describe())

    def say(event: str, **values: Any) -> None:
        recording.take({"event": event, **values})
        if progress and event == "times":
            if values.get("phase") == "sustained":
                progress(values["index"], len(calls), "measuring sustained load")
            elif "batch" in values:
                progress(0, 1, f"measuring batch {values['batch']}")
            else:
                progress(*_rounds(recording.series[values["index"]], config.stop), "measuring latency")

    with _kept_if_interrupted(recording, len(calls)):
        measure_calls(calls, config.plan, say, _batched_calls(list(named.values()), config, say))
    environment["load_average_1min_after"] = load_average()
    cold: dict[int, dict[str, Any]] = {i: {"runtime": subject.runtime} for i, subject in enumerate(named.values())}
    with _kept_if_interrupted(recording, len(calls)):
        for number, subject in enumerate(named.values() if config.memory and not recording.interrupted else ()):
            if progress:
                progress(number, len(named), "measuring memory")
            cold[number] |= _cold_here(subject, config.threads)
    device = {"url": "local", "kind": "local", "name": environment["cpu"], "machine": environment["machine"]}
    return _Measured(environment, device | {"facts": facts(recording.machine)}, recording, cold)


def _rounds(series: Series, stop: StopRule) -> tuple[int, int]:
    """How many are done, and about how many it will be."""
    done = len(series.ms)
    by_time = math.ceil(done * stop.seconds / series.at_s[-1]) if series.at_s[-1] > 0 else done
    return done, min(stop.max_rounds, max(stop.min_rounds, by_time, done))


@contextmanager
def _kept_if_interrupted(recording: Recording, subjects: int) -> Iterator[None]:
    """Ctrl-C ends what is inside. What was recorded stays, up to the last round that every subject has finished."""
    try:
        yield
    except KeyboardInterrupt:
        series = recording.series.values()
        rounds = min((min(len(one.at_s), len(one.ms)) for one in series), default=0)
        if len(series) < subjects or rounds == 0:
            raise
        for one in series:
            del one.at_s[rounds:], one.ms[rounds:]
        recording.interrupted = INTERRUPTED


def _cold_here(subject: Subject, threads: int) -> dict[str, Any]:
    # Another process could open the folder of a peer's network, and would measure PyTorch.
    memory = (
        None if subject.role == "peer" else measure_memory(subject.path, threads=threads, provider=subject.provider)
    )
    return {key: memory.pop(key) for key in ("load_ms", "first_inference_ms")} | {"memory": memory} if memory else {}


def _measure_there(named: dict[str, Subject], config: BenchConfig, progress: Progress | None) -> _Measured:
    models = [
        Model(subject.model_file, subject.target, _picture(subject), subject.batch_file, subject.provider)
        for subject in named.values()
    ]
    if progress:
        progress(0, 1, f"measuring on {config.device}")
    with open_device(config.device) as device, watch_phone(device) as phone:
        url, interruptible = device.url, Interruptible(device)
        try:
            run = measure_remote(
                cast(Device, interruptible),
                models,
                config.stop,
                threads=config.threads,
                sustained_s=config.sustained_s,
                batches=config.larger_batches,
                cores=config.cores,
                cold=config.memory,
            )
        except DeviceError as error:
            if interruptible.interrupted:
                raise KeyboardInterrupt from error
            raise
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
        cold={i: _cold_there(i, subjects[i], run) for i in run.loaded},
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


def _cold_there(index: int, subject: Subject, run: Recording) -> dict[str, Any]:
    loaded, output = run.loaded[index], run.outputs.get(index)
    apart = run.cold.get(index, {})
    cold: dict[str, Any] = {
        "runtime": loaded["runtime"],
        "load_ms": apart.get("load_ms", loaded["load_ms"]),
        "first_inference_ms": apart.get("first_ms", loaded["first_ms"]),
    }
    if all(apart.get(name) is not None for name in MEMORY):
        cold["memory"] = memory_record(*(apart[name] / 1024 for name in MEMORY))
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
    trace = power_trace(run, config.sustained_s)
    records, verdicts = [], []
    for index, (name, subject) in enumerate(named.items()):
        if index in run.series:
            record, verdict = _record(index, name, subject, measured)
            record |= under_load(index, run, trace)
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
            "batches": [1, *config.larger_batches],
            "sustained_seconds": config.sustained_s,
            **asdict(config.stop),
        },
        "subjects": records,
        "ratios": _ratios(records, {names[i]: series.ms for i, series in run.series.items()}),
        "validity": validity,
        "states": shown_states(run, names, trace),
        "failed": _failed(run, names, list(named.values()), config),
        "interrupted": run.interrupted,
    }


def _call(subject: Subject, pixels: np.ndarray | None) -> Callable[[], object]:
    """One inference with batch 1; the input is ready in memory."""
    following = cycle(_inputs(subject, pixels))
    return lambda: subject.run(next(following))


def _inputs(subject: Subject, pixels: np.ndarray | None) -> list[np.ndarray]:
    if pixels is None:
        return [subject.input_of(_noise(subject.size))]
    squares = (resize_square(Image.fromarray(one), subject.size, "bilinear") for one in pixels)
    return [subject.input_of(square[None]) for square in squares]


def _batched_calls(
    subjects: Sequence[Subject], config: BenchConfig, say: Callable[..., None]
) -> Iterator[tuple[int, dict[str, Callable[[], object]]]]:
    """For each size the calls of those that take so many pictures, loaded when the first is asked for."""
    opened: dict[int, Batched] = {}
    for index, subject in enumerate(subjects if config.larger_batches else ()):
        try:
            batched = open_batched(subject, threads=config.threads)
        except DspkdError as error:
            say("failed", index=index, batch=config.larger_batches[0], message=error.message)
            continue
        if batched is not None:
            opened[index] = batched
    for size in config.larger_batches:
        calls = {}
        for index, batched in opened.items():
            inputs = np.concatenate(list(islice(cycle(_inputs(subjects[index], config.pixels)), size)))
            try:
                calls[str(index)] = batched_call(batched.run, inputs, batched.most)
            except Exception as error:  # a runtime that has no memory for so many has an exception of its own
                say("failed", index=index, batch=size, message=first_line(error))
        yield size, calls


def _batch_records(sizes: Mapping[int, Series]) -> list[dict[str, Any]]:
    records = []
    for size, series in sorted(sizes.items()):
        latency = latency_summary(series.ms)
        records.append({"batch": size, "latency": latency, "throughput_per_s": 1e3 * size / latency["mean_ms"]})
    return records


def _failed(
    run: Recording, names: Sequence[str], subjects: Sequence[Subject], config: BenchConfig
) -> list[dict[str, str]]:
    failed = [{"name": names[i], "message": message} for i, message in run.failed.items()]
    for i in run.series if config.larger_batches else ():
        why = run.batches_failed.get(i) or (None if subjects[i].batch_file else "its file takes one picture a call")
        if why:
            failed.append({"name": f"{names[i]}, batches above 1", "message": why})
    return failed


def _record(index: int, name: str, subject: Subject, measured: _Measured) -> tuple[dict[str, Any], Verdict]:
    complexity = count(create_model(subject.architecture, subject.num_classes), subject.size)
    series, cold = measured.recording.series[index], measured.cold.get(index, {})
    latency, shapes = latency_summary(series.ms), flags(series.ms)
    cores, load = measured.environment.get("cores") or 1, measured.environment.get("load_average_1min")
    states = measured.recording.states_around(index)
    verdict = with_doubts(judge(latency, shapes, states, cores, load), measured.doubts)
    verdict = _with_answer(verdict, cold.get("device_check"))
    record = {
        "name": name,
        "role": subject.role,
        "path": str(subject.path),
        "architecture": subject.architecture,
        "target": subject.target,
        "provider": subject.provider if subject.target == "onnx" else None,
        "precision": subject.precision,
        "runtime": cold.get("runtime") or subject.runtime,
        "weights_sha256": subject.weights_sha256,
        "file_bytes": subject.file_bytes,
        "complexity": complexity.as_dict(),
        "load_ms": cold.get("load_ms"),
        "first_inference_ms": cold.get("first_inference_ms"),
        "latency": latency,
        "throughput_per_s": 1e3 / latency["mean_ms"],
        "batches": _batch_records(measured.recording.batches.get(index, {})),
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
    teachers = {_runtime(record): record for record in reversed(records) if record["role"] == "teacher"}
    ratios = []
    for record in records:
        if record["role"] in ("teacher", "peer") or not teachers:
            continue
        teacher = teachers.get(_runtime(record)) or teachers.get(("pytorch", None)) or next(iter(teachers.values()))
        own, theirs = record["complexity"], teacher["complexity"]
        ratios.append(
            {
                "subject": record["name"],
                "teacher": teacher["name"],
                "same_runtime": _runtime(teacher) == _runtime(record),
                "parameters": theirs["parameters"] / own["parameters"],
                "macs": theirs["macs"] / own["macs"],
                "file_bytes": teacher["file_bytes"] / record["file_bytes"],
                "latency": ratio_of_medians(times[teacher["name"]], times[record["name"]]),
            }
        )
    return ratios


def _runtime(record: Mapping[str, Any]) -> tuple[str, str | None]:
    return record["target"], record["provider"]
