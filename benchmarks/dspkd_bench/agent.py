"""The program that measures models on a device: one file, the standard library, and the runtime that is there.

    python3 agent.py spec.json

It is pushed into a folder of its own beside the models and prints events, one JSON object a line, as `remote.py` reads
them: start, loaded, failed, output, times, state, end. What has been measured is flushed about once a second, so
that a connection that breaks loses no more than that. If nobody reads any more, the program ends.

Python 3.8 and up, no torch, nothing of dspkd. The loop is also the one that `latency.py` uses on this machine.
"""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PROTOCOL = 1
STATE_SECONDS = 1.0
STEADY_WINDOW = 5
STEADY_CHANGE = 0.05
# MLPerf's LoadGen asks for this confidence in its single-stream scenario (early_stopping.cc, tolerance 0).
CONFIDENCE = 0.99


class Rule(NamedTuple):
    """Warm up for `warmup_rounds` and on until the times are steady; then at least `min_rounds`, and on until
    `seconds` have passed, `max_rounds` are done, or the p90 of every subject is known to `precision`.
    """

    warmup_rounds: int = 10
    min_rounds: int = 50
    max_rounds: int = 2000
    seconds: float = 20.0
    precision: float | None = None


class Round(NamedTuple):
    """One call of a subject: seconds since the measured part began, and how long it took."""

    name: str
    at_s: float
    ms: float


def early_stopping_rank(n: int, percentile: float = 0.9, confidence: float = CONFIDENCE) -> int | None:
    """Rank (1 is the smallest) among n sorted latencies that the true percentile stays under with `confidence`.

    None if n is too small for any. This is the estimate that MLPerf reports for a single stream: the smallest s for
    which at least s of n calls under the true percentile, each with probability `percentile`, are less probable
    than 1 - confidence.
    """
    allowed, over, tail, rank = 1.0 - confidence, 0, 0.0, None
    while over < n:
        tail += math.exp(
            math.lgamma(n + 1)
            - math.lgamma(over + 1)
            - math.lgamma(n - over + 1)
            + over * math.log(1 - percentile)
            + (n - over) * math.log(percentile)
        )
        if tail > allowed:
            break
        rank = n - over
        over += 1
    return rank


def p90_is_known(times_ms: Sequence[float], precision: float) -> bool:
    """Whether MLPerf's estimate of p90 is within `precision` (a fraction) of the p90 that was seen."""
    rank = early_stopping_rank(len(times_ms))
    if rank is None:
        return False
    ordered = sorted(times_ms)
    seen = ordered[math.ceil(0.9 * len(ordered)) - 1]
    return ordered[rank - 1] <= seen * (1.0 + precision)


def warm_up(
    calls: Mapping[str, Callable[[], object]], rule: Rule, clock_ns: Callable[[], int] = time.perf_counter_ns
) -> int:
    """Run until the time of a round no longer falls; the number of rounds. At most ten times as many as asked for."""
    rounds: list[int] = []
    while len(rounds) < 10 * rule.warmup_rounds:
        if len(rounds) >= rule.warmup_rounds and _is_steady(rounds):
            break
        before = clock_ns()
        for call in calls.values():
            call()
        rounds.append(clock_ns() - before)
    return len(rounds)


def _is_steady(rounds: Sequence[int]) -> bool:
    if len(rounds) < 2 * STEADY_WINDOW:
        return True
    earlier, later = sorted(rounds[-2 * STEADY_WINDOW : -STEADY_WINDOW]), sorted(rounds[-STEADY_WINDOW:])
    middle = STEADY_WINDOW // 2
    return later[middle] >= (1.0 - STEADY_CHANGE) * earlier[middle]


def measure_rounds(
    calls: Mapping[str, Callable[[], object]], rule: Rule, clock_ns: Callable[[], int] = time.perf_counter_ns
) -> Iterator[list[Round]]:
    """Every subject once per round, a list of Round each; the order turns by one place every round.

    The garbage collector is off while it runs. Stop reading and it stops.
    """
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        started = clock_ns()
        # Looking at the precision again only after a fifth more calls keeps the chance of stopping by luck small.
        look_at = rule.min_rounds
        for number in range(rule.max_rounds):
            if number >= rule.min_rounds and (clock_ns() - started) / 1e9 >= rule.seconds:
                return
            if rule.precision is not None and number >= look_at:
                look_at = math.ceil(1.2 * number)
                if all(p90_is_known(values, rule.precision) for values in times.values()):
                    return
            turn = number % len(names)
            done = []
            for name in names[turn:] + names[:turn]:
                before = clock_ns()
                calls[name]()
                after = clock_ns()
                times[name].append((after - before) / 1e6)
                done.append(Round(name, (before - started) / 1e9, (after - before) / 1e6))
            yield done
    finally:
        if collecting:
            gc.enable()


# The device's state ---------------------------------------------------------------------------------


def read_text(path: Any) -> str | None:
    """None if it cannot be read."""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None


def read_state() -> dict[str, Any]:
    """Clocks in kHz, governors, temperatures in degrees Celsius, load; what cannot be read is left out."""
    cores = sorted(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    clocks = [read_text(core / "scaling_cur_freq") for core in cores]
    temperatures = {}
    for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*")):
        value = read_text(zone / "temp")
        if value and value.lstrip("-").isdigit() and int(value) > -100000:
            temperatures[read_text(zone / "type") or zone.name] = int(value) / 1000.0
    return {
        "load1": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "clocks_khz": [int(value) for value in clocks if value and value.isdigit()],
        "governor": sorted({value for value in (read_text(core / "scaling_governor") for core in cores) if value}),
        "temperatures_c": temperatures,
    }


def describe() -> dict[str, Any]:
    """Processor, cores, system, and what a Jetson says of its release and power mode. No host name, no user."""
    info = read_text("/proc/cpuinfo") or ""
    named = [
        line.partition(":")[2].strip() for line in info.splitlines() if line.startswith(("model name", "Hardware"))
    ]
    return {
        "cpu": "".join(named[:1]) or (read_text("/proc/device-tree/model") or "").rstrip("\0") or None,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "os": " ".join((platform.system(), platform.release())),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "l4t": read_text("/etc/nv_tegra_release"),
    }


def memory_kib(field: str) -> int | None:
    """VmRSS, VmHWM and the like of this process; None where there is no /proc."""
    for line in (read_text("/proc/self/status") or "").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    return None


# Runtimes -------------------------------------------------------------------------------------------


def _onnx(path: str, threads: int) -> tuple[str, str, Callable[[Any], Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    image = session.get_inputs()[0]
    dtype = "uint8" if image.type == "tensor(uint8)" else "float32"
    return (
        "onnxruntime " + onnxruntime.__version__,
        dtype,
        lambda value: session.run(["probabilities"], {image.name: value})[0],
    )


def _tensorrt(path: str, threads: int) -> tuple[str, str, Callable[[Any], Any]]:
    import tensorrt_device  # type: ignore[import-not-found]  # pushed beside this file

    engine = tensorrt_device.Engine(Path(path))
    return f"{engine.version} on {engine.gpu}", engine.dtype, engine.run


LOADERS: dict[str, Callable[[str, int], tuple[str, str, Any]]] = {"onnx": _onnx, "tensorrt": _tensorrt}


def _lock() -> int | None:
    """A lock on the folder that work folders lie in, so that two measurements never share the device.

    On the folder itself: it leaves no file behind and goes with the process. None if another one holds it.
    """
    import fcntl

    folder = os.open(str(Path(__file__).resolve().parent.parent), os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(folder)
        return None
    return folder


class _Nobody(Exception):
    """Nobody reads what is printed any more."""


def _say(event: str, **values: Any) -> None:
    try:
        sys.stdout.write(json.dumps({"event": event, **values}) + "\n")
        sys.stdout.flush()
    except (BrokenPipeError, OSError) as error:
        raise _Nobody from error


def _load(index: int, model: dict[str, Any], threads: int) -> Callable[[], object]:
    """Load, run once, and say how long both took and what came out; the call that is timed later."""
    import numpy

    size = model["size"]
    pixels = numpy.fromfile(model["picture"], dtype=numpy.uint8).reshape(1, size, size, 3)
    if model["target"] not in LOADERS:
        raise ValueError(f"this agent runs {' and '.join(LOADERS)}, not {model['target']}")
    before, started = memory_kib("VmRSS"), time.perf_counter_ns()
    runtime, dtype, run = LOADERS[model["target"]](model["file"], threads)
    loaded = time.perf_counter_ns()
    value = pixels if dtype == "uint8" else to_float(pixels)
    first = time.perf_counter_ns()
    answer = run(value)
    ended = time.perf_counter_ns()
    _say(
        "loaded",
        index=index,
        runtime=runtime,
        load_ms=(loaded - started) / 1e6,
        first_ms=(ended - first) / 1e6,
        rss_before_kib=before,
        rss_loaded_kib=memory_kib("VmRSS"),
        peak_kib=memory_kib("VmHWM"),
    )
    _say("output", index=index, probabilities=[float(v) for v in answer[0]])
    return lambda: run(value)


def to_float(pixels: Any) -> Any:
    """uint8 (N, H, W, 3) -> contiguous float32 (N, 3, H, W) in [0, 1]: what `dspkd.runtimes.to_input` does."""
    import numpy

    return numpy.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=numpy.float32) / numpy.float32(255.0)


def measure(spec: dict[str, Any]) -> None:
    """Load every model of the spec, say which cannot be, and time the others in turns."""
    _say("start", protocol=PROTOCOL, program="dspkd-agent", **describe())
    if _lock() is None:
        _say("busy", message="another dspkd bench is running there")
        return
    calls: dict[str, Callable[[], object]] = {}
    for index, model in enumerate(spec["models"]):
        try:
            calls[str(index)] = _load(index, model, spec["threads"])
        except _Nobody:
            raise
        except ModuleNotFoundError as error:
            _say("failed", index=index, message=f"the device has no {error.name}")
        except Exception as error:  # each runtime has exceptions of its own
            _say("failed", index=index, message=(str(error).strip().splitlines() or [type(error).__name__])[0])
    if calls:
        _say("state", at_ms=0.0, **read_state())
        _measure(calls, Rule(**spec["rule"]))
    _say("end")


def _measure(calls: Mapping[str, Callable[[], object]], rule: Rule) -> None:
    warm_up(calls, rule)
    waiting: Any = {name: ([], []) for name in calls}
    said = time.monotonic()
    for done in measure_rounds(calls, rule):
        for name, at_s, took_ms in done:
            waiting[name][0].append(round(at_s * 1e3, 3))
            waiting[name][1].append(round(took_ms, 5))
        if time.monotonic() - said >= STATE_SECONDS:
            _flush(waiting)
            _say("state", at_ms=done[-1].at_s * 1e3, **read_state())
            said = time.monotonic()
    _flush(waiting)
    _say("state", at_ms=None, **read_state())


def _flush(waiting: Any) -> None:
    for name, (at_ms, took_ms) in waiting.items():
        if took_ms:
            _say("times", index=int(name), at_ms=at_ms, ms=took_ms)
        waiting[name] = ([], [])


def main(argv: Sequence[str] | None = None) -> int:
    (file,) = sys.argv[1:] if argv is None else argv
    # A lost connection may show as a hang-up before it shows as a broken pipe.
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Runtimes leave files in the temporary folder (ONNX Runtime a `.ses`); in this one they are removed with it.
    os.environ["TMPDIR"] = os.environ["XDG_CACHE_HOME"] = str(Path(__file__).resolve().parent)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        measure(json.loads(Path(file).read_text()))
    except _Nobody:
        # Python would try to flush once more and complain.
        os._exit(1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
