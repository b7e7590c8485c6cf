"""Measuring on a device: `agent.py` and the models go there, events come back."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dspkd import tensorrt_device
from dspkd.devices import NOT_FOUND, Completed, Device
from dspkd.errors import DeviceError
from dspkd_bench import agent
from dspkd_bench.latency import Series, StopRule

__all__ = ["Model", "RemoteRun", "measure_remote", "read_events"]

# Loading, and a runtime's own first optimisation, on a slow board.
PATIENCE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Model:
    """A model file, the runtime it is for, and the picture that it is measured with: uint8 (size, size, 3)."""

    path: Path
    target: str
    picture: np.ndarray


@dataclass(slots=True)
class RemoteRun:
    """What came back, by index of the model; an interrupted run holds what came before."""

    machine: dict[str, Any] = field(default_factory=dict)
    loaded: dict[int, dict[str, Any]] = field(default_factory=dict)
    outputs: dict[int, list[float]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    series: dict[int, Series] = field(default_factory=dict)
    states: list[dict[str, Any]] = field(default_factory=list)
    interrupted: str | None = None
    """Why it did not reach its end."""


def measure_remote(
    device: Device, models: Sequence[Model], stop: StopRule, *, threads: int, patience_s: float = PATIENCE_SECONDS
) -> RemoteRun:
    """Measure all models in turns on an open device: ExecuTorch programs with the C++ runner, all others with the
    agent, so that two programs run one after the other where both kinds are asked for.

    A run that breaks off after something was measured is returned with `interrupted`. Raises DeviceError if it broke
    off before, if another bench is running there, or if what came back is none of the agent's events.
    """
    parts = [
        [index for index, model in enumerate(models) if (model.target == "executorch") == native]
        for native in (False, True)
    ]
    whole = RemoteRun()
    for part, start in zip(parts, (_start_agent, _start_runner), strict=True):
        if not part or whole.interrupted:
            continue
        if start is _start_agent and not device.runs_python:
            whole.failed.update(dict.fromkeys(part, "it needs a Python, which a phone does not have"))
            continue
        command = start(device, [models[i] for i in part], stop, threads)
        try:
            run = _measure(device, command, stop.seconds + patience_s)
        except DeviceError as error:
            if not whole.series:
                raise
            run = RemoteRun(interrupted=error.message)
        _join(whole, run, part)
    return whole


def _join(whole: RemoteRun, run: RemoteRun, part: Sequence[int]) -> None:
    whole.machine = run.machine | whole.machine
    for name in ("loaded", "outputs", "failed", "series"):
        getattr(whole, name).update({part[i]: value for i, value in getattr(run, name).items() if i < len(part)})
    whole.states += run.states
    whole.interrupted = run.interrupted


def _measure(device: Device, command: Sequence[str], timeout: float) -> RemoteRun:
    with tempfile.TemporaryDirectory(prefix="dspkd-") as scratch:
        events = Path(scratch) / "events"
        fault: DeviceError | None = None
        done = Completed(0, "", "")
        try:
            with events.open("wb") as stream:
                done = device.run(command, timeout=timeout, stdout=stream)
        except DeviceError as error:
            fault = error
        if done.returncode == NOT_FOUND and command[0] == device.python:
            raise device.no_python(done)
        run = read_events(events.read_text(encoding="utf-8", errors="replace"), device.url)
    return _finished(run, device, done, fault)


def _start_runner(device: Device, models: Sequence[Model], stop: StopRule, threads: int) -> list[str]:
    """The runner for the device's kind of processor goes there; the command that starts it."""
    from dspkd_bench.runner_build import build_runner

    machine = device.run(["uname", "-m"], timeout=30).stdout.strip()
    with tempfile.TemporaryDirectory(prefix="dspkd-") as scratch:
        kit = build_runner(Path(scratch) / "kit", machine=machine)
        for file in kit.files:
            device.push(file, file.name)
        picture = Path(scratch) / "picture"
        given: list[str] = []
        for index, model in enumerate(models):
            device.push(model.path, f"program{index}.pte")
            picture.write_bytes(np.ascontiguousarray(model.picture).tobytes())
            device.push(picture, f"program{index}.bin")
            given += ["--input", f"program{index}.bin"]
    device.run(["chmod", "700", *kit.executables], timeout=30)
    options = {
        "--seconds": stop.seconds,
        "--min-rounds": stop.min_rounds,
        "--max-rounds": stop.max_rounds,
        "--warmup": stop.warmup_rounds,
        "--threads": threads,
    }
    programs = [f"program{index}.pte" for index in range(len(models))]
    return [*kit.command, *(word for pair in options.items() for word in map(str, pair)), *given, *programs]


def _start_agent(device: Device, models: Sequence[Model], stop: StopRule, threads: int) -> list[str]:
    described = []
    with tempfile.TemporaryDirectory(prefix="dspkd-") as scratch:
        spec, picture = Path(scratch) / "spec.json", Path(scratch) / "picture"
        for index, model in enumerate(models):
            name = f"model{index}{model.path.suffix}"
            device.push(model.path, name)
            picture.write_bytes(np.ascontiguousarray(model.picture).tobytes())
            device.push(picture, f"picture{index}.bin")
            size = model.picture.shape[0]
            described.append({"file": name, "target": model.target, "picture": f"picture{index}.bin", "size": size})
        spec.write_text(json.dumps({"models": described, "threads": threads, "rule": asdict(stop)}))
        device.push(spec, "spec.json")
    device.push(Path(agent.__file__), "agent.py")
    if any(model.target == "tensorrt" for model in models):
        device.push(Path(tensorrt_device.__file__), "tensorrt_device.py")
    return [device.python, "agent.py", "spec.json"]


def _finished(run: RemoteRun | None, device: Device, done: Completed, fault: DeviceError | None) -> RemoteRun:
    if run is None or not run.series:
        if fault is not None:
            raise fault
        if run is not None and run.failed and run.interrupted is None:
            return run
        raise DeviceError(f"{device.url}: the agent ended early: {done.last_line}", hint=_after_end(done))
    if fault is not None:
        run.interrupted = fault.message
    elif run.interrupted is not None:
        run.interrupted = f"{device.url}: the agent ended early (exit code {done.returncode})"
    return run


def _after_end(done: Completed) -> str:
    if done.returncode in (137, -9):
        return "it was killed, perhaps for memory: measure fewer or smaller models at once"
    return "see what its Python says: run `dspkd doctor --device` on it"


def read_events(text: str, url: str) -> RemoteRun | None:
    """None if nothing was said. Raises DeviceError for text that is no event, except for a last line cut short."""
    run = RemoteRun(interrupted="no end was reached")
    started = False
    for event in _events(text, url):
        started = True
        _take(run, event, url)
    return run if started else None


def _events(text: str, url: str) -> Iterator[dict[str, Any]]:
    lines = text.splitlines()
    for number, line in enumerate(lines):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            yield event
        elif number == len(lines) - 1 and not text.endswith("\n"):
            return
        elif number == 0 or not line.startswith("{"):
            raise _garbage(url, line)


def _garbage(url: str, line: Any) -> DeviceError:
    return DeviceError(
        f"{url}: what came back is not of the agent: {str(line)[:80]!r}",
        hint="its Python or its login scripts print something else on stdout",
    )


def _take(run: RemoteRun, event: dict[str, Any], url: str) -> None:
    try:
        _TAKERS.get(event["event"], _ignore)(run, event)
    except (KeyError, TypeError, ValueError) as error:
        raise _garbage(url, event) from error
    if event["event"] == "busy":
        raise DeviceError(f"{url}: {event['message']}", hint="wait until it has ended")


def _ignore(run: RemoteRun, event: dict[str, Any]) -> None:
    pass


def _start(run: RemoteRun, event: dict[str, Any]) -> None:
    if event["protocol"] != agent.PROTOCOL:
        raise ValueError("another protocol")
    run.machine = {key: value for key, value in event.items() if key not in ("event", "protocol", "program")}


def _loaded(run: RemoteRun, event: dict[str, Any]) -> None:
    run.loaded[int(event["index"])] = event


def _output(run: RemoteRun, event: dict[str, Any]) -> None:
    run.outputs[int(event["index"])] = [float(value) for value in event["probabilities"]]


def _failed(run: RemoteRun, event: dict[str, Any]) -> None:
    run.failed[int(event["index"])] = str(event["message"])


def _times(run: RemoteRun, event: dict[str, Any]) -> None:
    series = run.series.setdefault(int(event["index"]), Series())
    if len(event["at_ms"]) != len(event["ms"]):
        raise ValueError("two lengths")
    series.at_s.extend(float(value) / 1e3 for value in event["at_ms"])
    series.ms.extend(float(value) for value in event["ms"])


def _state(run: RemoteRun, event: dict[str, Any]) -> None:
    run.states.append({key: value for key, value in event.items() if key != "event"})


def _end(run: RemoteRun, event: dict[str, Any]) -> None:
    run.interrupted = None


_TAKERS = {
    "start": _start,
    "loaded": _loaded,
    "output": _output,
    "failed": _failed,
    "times": _times,
    "state": _state,
    "end": _end,
}
