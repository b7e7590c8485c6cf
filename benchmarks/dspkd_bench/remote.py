"""Measuring on a device: `agent.py` and the models go there, events come back."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dspkd import tensorrt_device
from dspkd.devices import NOT_FOUND, Completed, Device
from dspkd.errors import DeviceError, DspkdError
from dspkd_bench import agent
from dspkd_bench.latency import StopRule
from dspkd_bench.recording import INTERRUPTED, Recording

__all__ = ["Model", "measure_remote", "read_events"]

# Without a word. Between two calls something is said often, so this is for a single step: a model's cold start (at most
# agent.COLD_SECONDS), loading it with the runtime's own optimisation on a slow board, one call.
PATIENCE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Model:
    """A model file, the runtime it is for, and the picture that it is measured with: uint8 (size, size, 3)."""

    path: Path
    target: str
    picture: np.ndarray
    batch_path: Path | None = None
    """The file that takes more pictures in one call, if there is one; it may be the same."""
    provider: str = "cpu"
    """ONNX Runtime's execution provider: cpu, cuda or tensorrt."""


def measure_remote(
    device: Device,
    models: Sequence[Model],
    stop: StopRule,
    *,
    threads: int,
    sustained_s: float = 0.0,
    batches: Sequence[int] = (),
    cores: Sequence[int] | None = None,
    cold: bool = False,
    patience_s: float = PATIENCE_SECONDS,
) -> Recording:
    """Measure all models in turns on an open device: ExecuTorch programs with the C++ runner, all others with the
    agent, so that two programs run one after the other where both kinds are asked for. After the rounds each model runs
    alone for `sustained_s`. Only the agent knows `batches`, rounds with more pictures in a call. With `cold` each model
    is started in a process of its own before. `cores` are those that may be used.

    It takes as long as it takes; only what says nothing for `patience_s` is ended. A run that breaks off after
    something was measured is returned with `interrupted`. Raises DeviceError if it broke off before, if another bench
    is running there, or if what came back is none of the agent's events.
    """
    plan = agent.Plan(agent.Rule(**asdict(stop)), sustained_s, tuple(batches))
    whole = Recording()
    for native in (False, True):
        part = [index for index, model in enumerate(models) if (model.target == "executorch") == native]
        if not part or whole.interrupted:
            continue
        if not native and not device.runs_python:
            whole.failed.update(dict.fromkeys(part, "it needs a Python, which a phone does not have"))
            continue
        own = [models[i] for i in part]
        try:
            if native:
                run = _with_runner(device, own, plan, patience_s, threads=threads, cores=cores, cold=cold)
            else:
                command = _send_agent(device, own, plan, threads=threads, cores=cores, cold=cold)
                run = _measure(device, command, patience_s)
        except (DspkdError, KeyboardInterrupt) as error:
            if not whole.series:
                raise
            # What the program before has measured stays.
            run = Recording(interrupted=error.message if isinstance(error, DspkdError) else INTERRUPTED)
        whole.join(run, part)
    return whole


def _with_runner(
    device: Device,
    models: Sequence[Model],
    plan: agent.Plan,
    patience_s: float,
    *,
    threads: int,
    cores: Sequence[int] | None,
    cold: bool,
) -> Recording:
    runner = [*_taskset(cores), *_send_runner(device, models)]
    apart = _measure_cold(device, runner, len(models), threads) if cold else {}
    command = [*runner, *_runner_options(plan, len(models), threads)]
    if plan.sustained_s and _has_python(device):
        device.push(Path(agent.__file__), "agent.py")
        command = [device.python, "agent.py", "--beside", *command]
    run = _measure(device, command, patience_s)
    run.cold |= apart
    return run


def _has_python(device: Device) -> bool:
    """One that runs the agent, which reads the power sensors for the runner."""
    code = "import sys; sys.exit(sys.version_info < (3, 8))"
    return device.runs_python and device.run([device.python, "-c", code], timeout=30).returncode == 0


def _measure_cold(device: Device, runner: Sequence[str], number: int, threads: int) -> dict[int, dict[str, Any]]:
    """Of each program by itself, as the agent's `cold` events have it: the peak of a process's memory is that of all
    its programs. What fails here fails with its reason when all are measured.
    """
    found = {}
    for index in range(number):
        try:
            done = device.run(
                [*runner, "--cold", "--threads", str(threads), *_program(index)], timeout=agent.COLD_SECONDS
            )
            run = read_events(done.stdout, device.url)
        except DeviceError:
            break
        if run is not None and 0 in run.cold:
            found[index] = run.cold[0]
    return found


def _measure(device: Device, command: Sequence[str], patience_s: float) -> Recording:
    with tempfile.TemporaryDirectory(prefix="dspkd-") as scratch:
        events = Path(scratch) / "events"
        fault: DeviceError | None = None
        done = Completed(0, "", "")
        try:
            with events.open("wb") as stream:
                done = device.run(command, timeout=patience_s, stdout=stream)
        except DeviceError as error:
            fault = error
        if done.returncode == NOT_FOUND and command[0] == device.python and "--beside" not in command:
            raise device.no_python(done)
        run = read_events(events.read_text(encoding="utf-8", errors="replace"), device.url)
    return _finished(run, device, done, fault)


def _send_runner(device: Device, models: Sequence[Model]) -> list[str]:
    """The runner for the device's kind of processor goes there, and the programs; the command that starts it."""
    from dspkd_bench.runner_build import MACHINES, build_runner

    machine = device.run(["uname", "-m"], timeout=30).stdout.strip()
    if machine not in MACHINES:
        raise DeviceError(
            f"{device.url} is {machine or 'of no known processor'}, and there is no runner for that",
            hint=f"ExecuTorch programs are measured on {' and '.join(MACHINES)}",
        )
    with tempfile.TemporaryDirectory(prefix="dspkd-") as scratch:
        kit = build_runner(Path(scratch) / "kit", machine=machine)
        for file in kit.files:
            device.push(file, file.name)
        picture = Path(scratch) / "picture"
        for index, model in enumerate(models):
            device.push(model.path, f"program{index}.pte")
            picture.write_bytes(np.ascontiguousarray(model.picture).tobytes())
            device.push(picture, f"program{index}.bin")
    device.run(["chmod", "700", *kit.executables], timeout=30)
    return list(kit.command)


def _program(index: int) -> list[str]:
    """Its words for the runner, its picture first."""
    return ["--input", f"program{index}.bin", f"program{index}.pte"]


def _runner_options(plan: agent.Plan, number: int, threads: int) -> list[str]:
    rule = plan.rule
    options = {
        "--seconds": rule.seconds,
        "--min-rounds": rule.min_rounds,
        "--max-rounds": rule.max_rounds,
        "--warmup": rule.warmup_rounds,
        "--sustained": plan.sustained_s,
        "--pause": plan.pause_s,
        "--threads": threads,
        **({} if rule.precision is None else {"--precision": rule.precision}),
    }
    words = [str(word) for pair in options.items() for word in pair]
    return [*words, *(word for index in range(number) for word in _program(index))]


def _taskset(cores: Sequence[int] | None) -> list[str]:
    """The form with a mask in hex is the one that util-linux, busybox and Android's toybox share."""
    return [] if cores is None else ["taskset", f"{sum(1 << core for core in set(cores)):x}"]


def _send_agent(
    device: Device,
    models: Sequence[Model],
    plan: agent.Plan,
    *,
    threads: int,
    cores: Sequence[int] | None,
    cold: bool,
) -> list[str]:
    described = []
    with tempfile.TemporaryDirectory(prefix="dspkd-") as scratch:
        spec, picture = Path(scratch) / "spec.json", Path(scratch) / "picture"
        for index, model in enumerate(models):
            name = batch_name = f"model{index}{model.path.suffix}"
            device.push(model.path, name)
            if plan.batches and model.batch_path not in (None, model.path):
                batch_name = f"batches{index}{model.path.suffix}"
                device.push(model.batch_path, batch_name)
            picture.write_bytes(np.ascontiguousarray(model.picture).tobytes())
            device.push(picture, f"picture{index}.bin")
            described.append(
                {
                    "file": name,
                    "batch_file": batch_name if model.batch_path else None,
                    "target": model.target,
                    "provider": model.provider,
                    "picture": f"picture{index}.bin",
                    "size": model.picture.shape[0],
                }
            )
        plan_of = {"rule": plan.rule._asdict(), "sustained_s": plan.sustained_s, "batches": plan.batches}
        others = {"threads": threads, "cores": None if cores is None else list(cores), "cold": cold}
        spec.write_text(json.dumps({"models": described, **plan_of, **others}))
        device.push(spec, "spec.json")
    device.push(Path(agent.__file__), "agent.py")
    if any(model.target == "tensorrt" for model in models):
        device.push(Path(tensorrt_device.__file__), "tensorrt_device.py")
    return [device.python, "agent.py", "spec.json"]


def _finished(run: Recording | None, device: Device, done: Completed, fault: DeviceError | None) -> Recording:
    if run is None or not run.series:
        if fault is not None:
            raise fault
        if run is not None and run.failed and run.interrupted is None:
            return run
        what = f"{device.url}: what measures ended early: {done.last_line}"
        raise DeviceError(what, hint=_after_end(done, device.url))
    if fault is not None:
        run.interrupted = fault.message
    elif run.interrupted is not None:
        run.interrupted = f"{device.url}: what measures ended early (exit code {done.returncode})"
    return run


def _after_end(done: Completed, url: str) -> str:
    if done.returncode in (137, -9):
        return "it was killed, perhaps for memory: measure fewer or smaller models at once"
    return f"see what it has and lacks: dspkd doctor --device {url}"


def read_events(text: str, url: str) -> Recording | None:
    """None if nothing was said. Raises DeviceError for text that is no event, except for a last line cut short."""
    run = Recording(interrupted="no end was reached")
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


def _take(run: Recording, event: dict[str, Any], url: str) -> None:
    try:
        run.take(event)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _garbage(url, event) from error
    if event["event"] == "busy":
        raise DeviceError(f"{url}: {event['message']}", hint="wait until it has ended")
    if event["event"] == "refused":
        raise DeviceError(f"{url}: {event['message']}", hint="give --cores that it has")
